"""Damage of folders that other programs wrote: one error of polyvec's, in one line, or a model.

Changed bytes and values of another type in adapters beside and behind their base, Dense and Router
modules, GGUF files, SPLADE models and cross-encoders. Nothing says which bytes a foreign folder
had, so a changed weight can be read; those that polyvec saved have checksums (test_checksums.py).
"""

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import changed_bytes
from families import tokenizer
from folders import bert, modules
from gguf import GGUFReader
from gguf_files import make
from modules import dense, listed, router
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sparse_folders import splade
from test_damaged_settings import VALUES, places, replaced
from transformers import AutoModel, BertConfig, BertForSequenceClassification

from polyvec import Embedder
from polyvec.errors import ChangedFileWarning, PolyvecError
from polyvec.sentence_transformers import CrossEncoder, SparseEncoder

TEXTS = ["a cat sat on the mat", "the dog"]


def adapter(folder: Path, target: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    settings = LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(target)


def adapter_beside(folder: Path) -> None:
    bert(folder)
    modules(folder, "mean")
    adapter(folder, folder / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "adapter" / name).rename(folder / name)
    shutil.rmtree(folder / "adapter")


def adapter_behind(folder: Path) -> None:
    bert(folder.with_name("base"))
    adapter(folder.with_name("base"), folder)
    tokenizer().save_pretrained(folder)
    (folder / "README.md").unlink()


def with_dense(folder: Path) -> None:
    bert(folder)
    modules(folder, "mean")
    listed(folder, "Transformer", "Pooling", "Dense")
    dense(folder / "2_Dense", 1)


def splade_folder(folder: Path) -> None:
    folder.mkdir()
    splade(folder)


def gguf_file(folder: Path) -> None:
    folder.mkdir()
    make(folder / "m.gguf", "llama", pooling_type=1)


def gguf_encoder(folder: Path) -> None:
    folder.mkdir()
    make(folder / "m.gguf", "bert")


def cross_encoder(folder: Path) -> None:
    words = tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)
    own = {"prompts": {}, "activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own))


def vectors(folder: Path) -> np.ndarray:
    model = Embedder.from_pretrained(folder)
    return np.concatenate([model.encode(TEXTS, role=role) for role in ("query", "document")])


def sparse_vectors(folder: Path) -> np.ndarray:
    return SparseEncoder(str(folder)).encode(TEXTS, convert_to_sparse_tensor=False).numpy()


def scores(folder: Path) -> np.ndarray:
    return CrossEncoder(str(folder)).predict([(TEXTS[0], TEXTS[1])])


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], np.ndarray]]] = {
    "adapter beside its base": (adapter_beside, vectors),
    "adapter behind its base": (adapter_behind, vectors),
    "dense": (with_dense, vectors),
    "router": (router, vectors),
    "splade": (splade_folder, sparse_vectors),
    "cross-encoder": (cross_encoder, scores),
}
GGUF = {"decoder": gguf_file, "encoder": gguf_encoder}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    made, load = KINDS[request.param]
    folder = tmp_path / "folder"
    made(folder)
    load(folder)
    return folder, load


def refused(folder: Path, load: Callable[[Path], np.ndarray], what: str) -> bool:
    """Whether the folder is refused, in one line; any other error is the test's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load(folder)
        except PolyvecError as error:
            assert "\n" not in str(error), f"{what}: {error}"
            return True
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    return False


def values(folder: Path, count: int) -> Iterator[str]:
    """Changes a value of a JSON file, says which, and brings it back."""
    found = [
        (path, json.loads(path.read_text()))
        for path in sorted(folder.rglob("*.json"))
        if path.name != "tokenizer.json"
    ]
    cases = [(*each, at, new) for each in found for at in places(each[1]) for new in VALUES]
    for path, value, at, new in random.Random(0).sample(cases, min(count, len(cases))):
        text = path.read_text()
        path.write_text(json.dumps(replaced(value, at, new)))
        yield f"{path.relative_to(folder)} {at} = {new!r}"
        path.write_text(text)


COUNT = 15


def test_a_changed_byte_is_no_traceback(kind):
    folder, load = kind
    for where in changed_bytes(folder, COUNT, seed=3):
        refused(folder, load, where)


def test_a_value_of_another_type_is_no_traceback_here_either(kind):
    folder, load = kind
    for where in values(folder, COUNT):
        refused(folder, load, where)


WEIGHTS = {
    "other name": lambda state, key: {"other": state.pop(key), **state},
    "missing": lambda state, key: {name: state[name] for name in state if name != key},
    "other shape": lambda state, key: {**state, key: torch.ones(3, 5, 7)},
    "not finite": lambda state, key: {**state, key: state[key] * torch.nan},
    "whole numbers": lambda state, key: {**state, key: (10 * state[key]).to(torch.int32)},
}


@pytest.mark.parametrize("change", WEIGHTS)
@pytest.mark.parametrize("name", KINDS)
def test_weights_that_do_not_fit_are_noticed(name, change, tmp_path):
    """Refused, or told: sequence classifiers may start without their head."""
    made, load = KINDS[name]
    folder = tmp_path / "folder"
    made(folder)
    for path in sorted(folder.rglob("*.safetensors")):
        whole = path.read_bytes()
        state = load_file(path)
        key = next(key for key in sorted(state) if key.endswith("weight"))
        save_file(WEIGHTS[change](state, key), path, metadata={"format": "pt"})
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            is_refused = False
            try:
                load(folder)
            except PolyvecError:
                is_refused = True
        assert is_refused or any("start at random" in str(each.message) for each in told), path
        path.write_bytes(whole)


# ---- saved by polyvec: every byte counts ------------------------------------------------------

SAVED: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "router": ("router", lambda old, new: Embedder.from_pretrained(old).save_pretrained(new)),
    "splade": ("splade", lambda old, new: SparseEncoder(str(old)).save_pretrained(str(new))),
    "cross-encoder": (
        "cross-encoder", lambda old, new: CrossEncoder(str(old)).save_pretrained(new)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_a_changed_byte_of_what_was_saved_is_noticed_or_changes_nothing(name, tmp_path):
    of, save = SAVED[name]
    made, load = KINDS[of]
    made(tmp_path / "made")
    save(tmp_path / "made", tmp_path / "saved")
    folder = tmp_path / "saved"
    expected, noticed = load(folder), 0
    np.testing.assert_allclose(expected, load(tmp_path / "made"), atol=1e-6)
    for where in changed_bytes(folder, COUNT, seed=5):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                got = load(folder)
            except PolyvecError:
                noticed += 1
                continue
        if any(issubclass(each.category, ChangedFileWarning) for each in told):
            noticed += 1
        else:
            np.testing.assert_array_equal(got, expected, err_msg=where)
    assert noticed > COUNT // 3


@pytest.mark.parametrize("kind", GGUF)
def test_a_changed_byte_in_a_gguf_files_metadata_is_no_traceback(kind, tmp_path):
    """Names, types, numbers, lengths and the tokenizer; most of a file are weights."""
    GGUF[kind](tmp_path / "folder")
    path = tmp_path / "folder" / "m.gguf"
    whole, chance = path.read_bytes(), random.Random(0)
    end = GGUFReader(path).data_offset
    found = []
    for turn in range(COUNT):
        place = chance.randrange(end) if turn else end + chance.randrange(len(whole) - end)
        damaged = bytearray(whole)
        damaged[place] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        found.append(refused(path.parent, vectors, f"byte {place}"))
    assert sum(found) > COUNT // 2
