"""Weights stored in half precision are computed in float32 and stored as they were."""

import json

import numpy as np
import pytest
import torch
from folders import bert, modules
from safetensors.torch import load_file, save_file
from test_static import folder as folder_of_static  # noqa: F401 - a fixture
from transformers import AutoModel, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from polyvec import Embedder


def halved(folder, dtype):
    path = folder / "model.safetensors"
    save_file({k: v.to(dtype) for k, v in load_file(path).items()}, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": str(dtype)[6:]}))


def types(folder):
    return {value.dtype for value in load_file(folder / "model.safetensors").values()}


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def half(request):
    return request.param


@pytest.fixture
def folder(tmp_path, half):
    bert(tmp_path / "model")
    modules(tmp_path / "model", "mean")
    halved(tmp_path / "model", half)
    return tmp_path / "model"


def test_the_stored_type_is_kept(folder, half, tmp_path):
    model = Embedder.from_pretrained(folder)
    assert model.dtype == torch.float32
    model.save_pretrained(tmp_path / "saved")
    assert types(tmp_path / "saved") == {half}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == str(half)[6:]
    again = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode("a cat"), model.encode("a cat"))
    again.save_pretrained(tmp_path / "saved")
    assert types(tmp_path / "saved") == {half}
    theirs = AutoModel.from_pretrained(tmp_path / "saved", dtype="auto")
    before = AutoModel.from_pretrained(folder, dtype="auto")
    for one, other in zip(theirs.parameters(), before.parameters(), strict=True):
        assert one.dtype == half and torch.equal(one, other)


def test_what_training_changed_is_not_rounded(folder, tmp_path):
    model = Embedder.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters())[3, 3] += 1e-6
    model.save_pretrained(tmp_path / "saved")
    assert types(tmp_path / "saved") == {torch.float32}
    again = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode("a cat"), model.encode("a cat"))


def test_a_type_that_was_asked_for_is_stored(folder, half, tmp_path):
    Embedder.from_pretrained(folder, dtype=str(half)[6:]).save_pretrained(tmp_path / "saved")
    assert types(tmp_path / "saved") == {half}


def test_float32_stays_float32(tmp_path):
    bert(tmp_path / "model")
    modules(tmp_path / "model", "mean")
    Embedder.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "saved")
    assert types(tmp_path / "saved") == {torch.float32}


def test_tied_weights_are_stored_once(tmp_path, half):
    from families import tokenizer

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    more = {"num_attention_heads": 4, "vocab_size": len(tokenizer()), "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**sizes, **more, pad_token_id=0)).save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    halved(tmp_path / "m", half)
    model = Embedder.from_pretrained(tmp_path / "m", pooling="last")
    model.save_pretrained(tmp_path / "saved")
    assert types(tmp_path / "saved") == {half}
    again = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode("a cat"), model.encode("a cat"))


def test_tables_of_words_too(folder_of_static, half, tmp_path):  # noqa: F811
    path = folder_of_static / "model.safetensors"
    save_file({k: v.to(half) for k, v in load_file(path).items()}, path)
    model = Embedder.from_pretrained(folder_of_static)
    for _ in "ab":
        model.save_pretrained(tmp_path / "saved")
    assert types(tmp_path / "saved") == {half}
    again = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode("a cat"), model.encode("a cat"))


def test_a_language_model_with_its_head_too(tmp_path, half):
    """SPLADE reads the head, whose weights are the token embeddings."""
    from families import tokenizer

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    more = {"num_attention_heads": 4, "vocab_size": len(tokenizer()), "pad_token_id": 0}
    BertForMaskedLM(BertConfig(**sizes, **more)).save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    halved(tmp_path / "m", half)
    model = Embedder.from_pretrained(tmp_path / "m", output="sparse")
    model.save_pretrained(tmp_path / "saved")
    assert types(tmp_path / "saved") == {half}
    size = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert size <= (tmp_path / "m" / "model.safetensors").stat().st_size
    again = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode("a cat"), model.encode("a cat"))
