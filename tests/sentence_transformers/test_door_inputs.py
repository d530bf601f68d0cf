"""Pairs, features, half precision and pairwise similarity of the door beside the library's own."""

import json
import shutil

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers import util as their_util

from polyvec.errors import InputError, ShapeError
from polyvec.sentence_transformers import SentenceTransformer, util

TEXTS = ["a cat", "the longer text of three about rivers in spring", "rain"]
PAIRS = [("a cat", "rain in spring"), ("the longer text of three", "x"), ("rain", "a cat")]
CLOSE = {"atol": 2e-6, "rtol": 0}


@pytest.fixture(scope="module")
def typed(tiny_bert, tmp_path_factory):
    """The folder of tiny_bert, whose tokenizer says that the model reads token types."""
    folder = shutil.copytree(tiny_bert, tmp_path_factory.mktemp("typed") / "model")
    (folder / "polyvec_checksums.json").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_input_names": names}))
    return str(folder)


@pytest.fixture(scope="module")
def both(typed):
    return [
        kind(typed, device="cpu")
        for kind in (SentenceTransformer, sentence_transformers.SentenceTransformer)
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 1, "normalize_embeddings": True},
        {"prompt": "find: "},
        {"truncate_dim": 8, "convert_to_tensor": True},
        {"output_value": "token_embeddings"},
    ],
    ids=str,
)
def test_pairs_are_read_together(both, options):
    mixed = [PAIRS[0], "rain", PAIRS[1]]
    for inputs in (PAIRS, [list(pair) for pair in PAIRS], np.array(PAIRS), mixed):
        found, wanted = (model.encode(inputs, **options) for model in both)
        assert type(found) is type(wanted)
        apart = 1e-5 if "output_value" in options else 2e-6
        for one, other in zip(found, wanted, strict=True):
            one, other = torch.as_tensor(one), torch.as_tensor(other)
            torch.testing.assert_close(one, other, atol=apart, rtol=0)


def test_the_second_text_has_its_token_type(both):
    """Also in features that a tokenizer made; one text after the other is another input."""
    ours, theirs = both
    features = theirs.preprocess(PAIRS)
    mine = ours.preprocess(PAIRS)
    assert set(mine) == set(features) and features["token_type_ids"].any()
    assert all(torch.equal(mine[name], features[name]) for name in mine if name != "modality")
    found = ours(mine)["sentence_embedding"]
    torch.testing.assert_close(found, theirs(features)["sentence_embedding"], **CLOSE)
    flat = ours({**mine, "token_type_ids": torch.zeros_like(mine["token_type_ids"])})
    assert (flat["sentence_embedding"] - found).abs().max() > 1e-3


def test_a_prompt_before_pairs_may_stay_out_of_the_pooling(tiny_bert):
    models = [
        kind(str(tiny_bert), device="cpu")
        for kind in (SentenceTransformer, sentence_transformers.SentenceTransformer)
    ]
    for model in models:
        model.set_pooling_include_prompt(False)
    found, wanted = (model.encode(PAIRS, prompt="find this: ") for model in models)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.filterwarnings("ignore:.*longer than")
def test_the_most_tokens_of_one_call(both):
    ours, theirs = both
    for inputs in (TEXTS, PAIRS):
        for most in (4, 7):
            options = {"processing_kwargs": {"text": {"max_length": most, "truncation": True}}}
            wanted = theirs.encode(inputs, **options)
            np.testing.assert_allclose(ours.encode(inputs, **options), wanted, atol=2e-6)
            read = ours.preprocess(inputs, **options)["input_ids"]
            assert torch.equal(read, theirs.preprocess(inputs, **options)["input_ids"])
    assert ours.max_seq_length == 64
    for wrong in ({"common": {}}, {"text": {"max_length": "x"}}, {"text": {"padding": False}}, 3):
        with pytest.raises(InputError, match=r"processing_kwargs|max_length"):
            ours.encode(TEXTS, processing_kwargs=wrong)


def test_pairs_that_cannot_be_read_are_refused(tiny_bert):
    ours = SentenceTransformer(str(tiny_bert), device="cpu", special_tokens="text")
    with pytest.raises(InputError, match='not read with special_tokens="text"'):
        ours.encode(PAIRS)
    for wrong in ([("a", "b", "c")], [{"image": 1}], [("a", 3)]):
        with pytest.raises(InputError, match=r"inputs\[0\]"):
            ours.encode(wrong)
    with pytest.raises(InputError, match="truncate is for single texts"):
        ours.encode(PAIRS, truncate="error")


def test_features_are_a_batch_encoding(both):
    for options in ({}, {"prompt": "find: "}):
        found, wanted = (model.preprocess(TEXTS, **options) for model in both)
        assert type(found) is type(wanted)
        assert list(found) == list(wanted) and found.get("prompt_length") == wanted.get(
            "prompt_length"
        )
        assert found.to("cpu")["input_ids"].device.type == "cpu"
        assert found.input_ids is found["input_ids"]
    assert both[0].preprocess([]) == both[1].preprocess([]) == {}


def test_all_features_of_each_text(both):
    for options in ({"batch_size": 2}, {"prompt": "find: "}, {"truncate_dim": 8}):
        found, wanted = (model.encode(TEXTS, output_value=None, **options) for model in both)
        for one, other in zip(found, wanted, strict=True):
            assert set(one) == set(other)
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                assert torch.equal(one[name], other[name])
            assert one.get("prompt_length") == other.get("prompt_length")
            torch.testing.assert_close(
                one["sentence_embedding"], other["sentence_embedding"], **CLOSE
            )
            real_T = one["attention_mask"].bool()
            torch.testing.assert_close(
                one["token_embeddings"][real_T],
                other["token_embeddings"][real_T],
                atol=1e-5,
                rtol=1e-5,
            )
            assert one["token_embeddings"].shape == other["token_embeddings"].shape
            assert not one["token_embeddings"][~real_T].any()


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16], ids=str)
def halves(request, tiny_bert):
    return [
        kind(str(tiny_bert), device="cpu", model_kwargs={"dtype": request.param})
        for kind in (SentenceTransformer, sentence_transformers.SentenceTransformer)
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"convert_to_tensor": True, "normalize_embeddings": True},
        {"convert_to_numpy": False},
        {"truncate_dim": 8, "normalize_embeddings": True},
        {"output_value": "token_embeddings"},
        {"precision": "int8"},
        {"precision": "ubinary", "convert_to_tensor": True},
    ],
    ids=str,
)
def test_half_precision_stays_half_precision(halves, options):
    ours, theirs = halves
    for inputs in (TEXTS, PAIRS) if options.get("precision") else (TEXTS, PAIRS, "a cat"):
        found, wanted = ours.encode(inputs, **options), theirs.encode(inputs, **options)
        assert type(found) is type(wanted)
        for one, other in zip(_rows(found), _rows(wanted), strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape
            # A last place of bfloat16 near 1; a bin of int8.
            apart = 1 if options.get("precision") == "int8" else 2e-2
            assert (one.float() - other.float()).abs().max() <= apart
    if options == {}:
        assert ours.similarity(found, found).dtype == torch.float32


def _rows(found):
    return [torch.as_tensor(x) for x in (found if isinstance(found, list) else [found])]


def test_a_model_made_half_gives_half(tiny_bert):
    ours = SentenceTransformer(str(tiny_bert), device="cpu")
    assert ours.encode(TEXTS).dtype == np.float32
    assert ours.half().encode(TEXTS).dtype == np.float16


NAMES = [f"pairwise_{name}" for name in ("cos_sim", "dot_score", "euclidean_sim", "manhattan_sim")]


@pytest.mark.parametrize("name", [*NAMES, "similarity_pairwise"])
def test_pairwise_shapes(both, name):
    vectors = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    ours, theirs = both if name == "similarity_pairwise" else (util, their_util)
    one, three = vectors[0], vectors[1:]
    for a, b in (
        (one, vectors[1]),
        (one, three),
        (three, one),
        (three[:1], three),
        (three, three.flip(0)),
        (three[None], three[None]),
    ):
        for form in (lambda x: x, torch.Tensor.numpy, torch.Tensor.tolist):
            found = getattr(ours, name)(form(a), form(b))
            wanted = getattr(theirs, name)(form(a), form(b))
            assert found.shape == wanted.shape and found.dtype == wanted.dtype
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    with pytest.raises(ShapeError, match="expected as many"):
        getattr(ours, name)(vectors[:2], three)
    with pytest.raises(ShapeError, match="expected equal widths"):
        getattr(ours, name)(vectors[:, :1], vectors)
