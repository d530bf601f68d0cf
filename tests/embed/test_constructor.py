"""Embedder(name_or_path), Embedder.from_parts, and settings that are checked when written."""

import warnings

import numpy as np
import pytest
import torch

from polyvec import Embedder
from polyvec.errors import InputError

TEXTS = ["a cat", "a river in spring"]


@pytest.fixture
def tiny(tiny_bert) -> Embedder:
    return Embedder(tiny_bert)


def test_a_path_or_name_is_what_the_constructor_takes(tiny_bert, tiny):
    wanted = Embedder.from_pretrained(tiny_bert, truncate_dim=8).encode(TEXTS)
    found = Embedder(str(tiny_bert), truncate_dim=8).encode(TEXTS)
    assert np.array_equal(found, wanted) and found.shape == (2, 8)
    composed = Embedder.from_parts(**tiny._parts().keywords())
    assert np.array_equal(composed.encode(TEXTS), tiny.encode(TEXTS))


def test_parts_have_a_constructor_of_their_own(tiny):
    with pytest.raises(InputError, match=r"got Backbone; Embedder\.from_parts"):
        Embedder(tiny.backbone)
    with pytest.raises(InputError, match="a model is a folder or a hub id, got int"):
        Embedder(3)


def test_devices_and_dtypes_are_torchs_own(tiny_bert):
    model = Embedder(tiny_bert, device=torch.device("cpu"), dtype=torch.float32)
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert Embedder(tiny_bert, dtype="auto").dtype == torch.float32
    with warnings.catch_warnings(action="ignore"):  # emulated on most processors
        assert Embedder(tiny_bert, dtype=torch.float16).dtype == torch.float16
    with pytest.raises(InputError, match="dtype 'int8' is not known"):
        Embedder(tiny_bert, dtype=torch.int8)


def test_the_similarity_is_checked_when_written(tiny):
    tiny.similarity_fn_name = "dot"
    vectors = torch.tensor([[1.0, 2.0]])
    assert tiny.similarity(vectors, vectors).item() == 5
    with pytest.raises(InputError, match="Did you mean 'cosine'"):
        tiny.similarity_fn_name = "cosin"
    assert tiny.similarity_fn_name == "dot"


def test_the_default_prompt_is_checked_when_written(tiny):
    plain = tiny.encode(TEXTS)
    tiny.prompts = {"query": "find: "}
    tiny.default_prompt_name = "query"
    assert np.array_equal(tiny.encode(TEXTS), tiny.encode(TEXTS, prompt="find: "))
    assert tiny.settings()["default_prompt_name"] == "query"
    with pytest.raises(InputError, match="Did you mean 'query'"):
        tiny.default_prompt_name = "qeury"
    tiny.default_prompt_name = None
    assert np.array_equal(tiny.encode(TEXTS), plain)


def test_the_pooling_is_checked_when_written(tiny, tiny_bert):
    tiny.pooling = "first"
    wanted = Embedder(tiny_bert, pooling="first").encode(TEXTS)
    assert np.array_equal(tiny.encode(TEXTS), wanted)
    with pytest.raises(ValueError, match="Did you mean 'mean'"):
        tiny.pooling = "meen"
    with pytest.raises(InputError, match="another dimension"):
        tiny.pooling = ("first", "mean")  # the model ends in Normalize


def test_the_dimension_is_checked_when_written(tiny):
    for wrong in (0, 33, 2.5, "8"):
        with pytest.raises(InputError, match="truncate_dim"):
            tiny.truncate_dim = wrong


def test_what_the_constructor_took_before_is_named(tiny):
    with pytest.raises(InputError, match=r"got Backbone, TextTokenizer; Embedder\.from_parts"):
        Embedder(tiny.backbone, tiny.text_tokenizer)
    with pytest.raises(InputError, match="options by keyword; got str, str"):
        Embedder("a-model", "cpu")


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("poling", "first", "'poling' is not known. Did you mean 'pooling'"),
        ("backbone", "a-model", "backbone is str 'a-model', expected Backbone"),
        ("text_tokenizer", 5, "expected TextTokenizer"),
        ("pooling", 5, "pooling is int"),
        ("pooling", [5], "expected a name or several"),
        ("pool_prompt", "no", "pool_prompt is str 'no', expected bool"),
        ("projections", 5, "projections is int"),
        ("projections", [5], r"projections\[0\] is int, expected a module"),
        ("prompts", {"query": "q: "}, "prompts is dict"),
        ("template", "find: {text}", "expected Template or None"),
        ("calibration", 5, "calibration is int"),
        ("routes", [], "routes is list"),
    ],
)
def test_parts_are_checked(tiny, part, value, message):
    parts = {**tiny._parts().keywords(), part: value}
    with pytest.raises(InputError, match=message):
        Embedder.from_parts(**parts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("default_prompt_name", ["query"]), ("pooling", 5), ("pooling", None), ("pooling", [5]),
        ("prompts", None), ("prompts", 5), ("prompts", "find"), ("prompts", {5: "find: "}),
        ("pool_prompt", "no"), ("calibration", "x"), ("template", "find: {text}"),
        ("text_tokenizer", 5), ("prompt_table", {"query": "find: "}), ("layers", 5),
        ("variants", 5), ("routes", 5),
    ],
)  # fmt: skip
def test_other_types_are_refused_when_written(tiny, name, value):
    plain = tiny.encode(TEXTS)
    with pytest.raises(InputError, match=name.split("_")[0]):
        setattr(tiny, name, value)
    assert np.array_equal(tiny.encode(TEXTS), plain)


@pytest.mark.parametrize(
    "name",
    ["normalize_embeddings", "prompt", "batch_size", "truncate", "precision", "attention",
     "layout", "max_length", "device", "dtype"],
)  # fmt: skip
def test_what_would_do_nothing_is_refused(tiny, name):
    """Before, `embedder.normalize_embeddings = True` was kept and read by nobody."""
    with pytest.raises(InputError, match=f"assigning {name} does nothing; "):
        setattr(tiny, name, "cpu")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dtype", ""), ("dtype", " "), ("output", ""), ("attention", ""), ("attention", 5),
        ("layout", ""), ("revision", ""), ("revision", 5), ("cache_folder", 5), ("token", 5),
        ("base_model", ""), ("trust_remote_code", "no"), ("trust_remote_code", 1),
        ("local_files_only", "x"), ("merge_adapters", None),
    ],
)  # fmt: skip
def test_options_of_loading_are_checked(tiny_bert, option, value):
    """Before, dtype="" was float32, and trust_remote_code="no" ran the code."""
    with pytest.raises(InputError, match=option):
        Embedder(tiny_bert, **{option: value})
