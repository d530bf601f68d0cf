"""polyvec.sentence_transformers.SentenceTransformer beside sentence-transformers' own class."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import sentence_transformers
import torch

from polyvec.errors import InputError
from polyvec.sentence_transformers import SentenceTransformer

TEXTS = ["a cat", "the longer text of three about rivers in spring", "rain"]


@pytest.fixture(scope="module")
def theirs(tiny_bert):
    return sentence_transformers.SentenceTransformer(str(tiny_bert), device="cpu")


@pytest.fixture
def ours(tiny_bert) -> SentenceTransformer:
    return SentenceTransformer(str(tiny_bert), device="cpu")


def test_the_import_needs_no_sentence_transformers():
    code = (
        "import sys\n"
        "from polyvec.sentence_transformers import CrossEncoder, SentenceTransformer\n"
        "from polyvec.sentence_transformers import SimilarityFunction, SparseEncoder, util\n"
        "sys.exit('sentence_transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


OPTIONS = [
    {},
    {"normalize_embeddings": True},
    {"truncate_dim": 8},
    {"truncate_dim": 8, "normalize_embeddings": True},
    {"prompt": "find: "},
    {"precision": None},
    {"precision": "int8"},
    {"precision": "binary"},
    {"batch_size": 1},
    {"convert_to_tensor": True},
    {"convert_to_numpy": False},
    {"output_value": "token_embeddings"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.filterwarnings("ignore:the ranges are")
def test_encode_gives_the_same_in_the_same_form(theirs, ours, options):
    for inputs in (TEXTS, np.array(TEXTS), [{"text": TEXTS[0]}], "a cat"):
        if options.get("precision") == "int8" and len(inputs) != 3:
            continue  # a single vector has no ranges
        wanted, found = theirs.encode(inputs, **options), ours.encode(inputs, **options)
        assert type(found) is type(wanted)
        for one, other in zip(_rows(found), _rows(wanted), strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            # Quantised numbers on a border may be one apart; states are numbers up to 3.
            apart = 1 if options.get("precision") in ("int8", "binary") else 5e-6
            assert np.abs(one.astype(float) - other.astype(float)).max() <= apart


def test_a_text_is_not_its_characters(ours):
    with pytest.raises(InputError, match="without dimensions; pass a list of strings"):
        ours.encode(np.array("hi"))
    for wrong in ("hi", {"text": "hi"}, 5):
        with pytest.raises(InputError, match="pass a list of strings"):
            ours.preprocess(wrong)


def _rows(vectors):
    return [np.asarray(each) for each in (vectors if isinstance(vectors, list) else [vectors])]


def test_arguments_are_taken_by_position(theirs, ours):
    positional = (None, "find: ", 2, False, "sentence_embedding", "float32", True, False, "cpu")
    for name in ("encode", "encode_query", "encode_document"):
        wanted = getattr(theirs, name)(TEXTS, *positional)
        assert np.allclose(getattr(ours, name)(TEXTS, *positional), wanted, atol=5e-6)
    assert np.array_equal(ours.encode(sentences=TEXTS), ours.encode(inputs=TEXTS))


def test_all_features_of_a_text(theirs, ours):
    wanted, found = (m.encode(TEXTS, output_value=None) for m in (theirs, ours))
    for one, other in zip(found, wanted, strict=True):
        assert set(one) == set(other)
        assert torch.equal(one["input_ids"], other["input_ids"])
        vectors = one["sentence_embedding"], other["sentence_embedding"]
        torch.testing.assert_close(*vectors, atol=5e-6, rtol=0)


def test_forward_takes_and_gives_features(theirs, ours):
    features = theirs.preprocess(TEXTS)
    mine = ours.preprocess(TEXTS)
    assert all(torch.equal(mine[name], features[name]) for name in mine if name != "modality")
    wanted, found = theirs(dict(features)), ours(dict(features))
    close = {"atol": 5e-6, "rtol": 0}
    torch.testing.assert_close(found["sentence_embedding"], wanted["sentence_embedding"], **close)
    mask = features["attention_mask"][..., None]
    torch.testing.assert_close(
        found["token_embeddings"], wanted["token_embeddings"] * mask, atol=1e-5, rtol=1e-5
    )
    # Padding on the left gives the same vectors.
    flipped = {k: v.flip(1) for k, v in features.items() if k != "modality"}
    ids, mask = features["input_ids"], features["attention_mask"]
    for row, count in enumerate(mask.sum(dim=1).tolist()):
        flipped["input_ids"][row, -count:] = ids[row, :count]
        flipped["attention_mask"][row] = mask[row].flip(0)
    left = ours(flipped)["sentence_embedding"]
    torch.testing.assert_close(left, found["sentence_embedding"], **close)
    found["sentence_embedding"].sum().backward()
    assert next(ours.parameters()).grad is not None


def test_a_prompt_that_is_not_pooled(tiny_bert, theirs):
    wanted = copy.deepcopy(theirs)
    found = SentenceTransformer(tiny_bert)
    for model in (wanted, found):
        model.set_pooling_include_prompt(False)
    assert not found[1].include_prompt
    vectors = [model.encode(TEXTS, prompt="find this: ") for model in (found, wanted)]
    assert np.allclose(*vectors, atol=5e-6)
    features = found.preprocess(TEXTS, prompt="find this: ")
    assert np.allclose(found(features)["sentence_embedding"].detach(), vectors[1], atol=5e-6)


def test_modules_are_read_as_theirs(theirs, ours):
    assert len(ours) == len(theirs) == len(list(ours))
    assert ours[0].tokenizer is ours.tokenizer
    assert ours[0].auto_model is ours.transformers_model
    assert ours[1].pooling_mode == theirs[1].pooling_mode
    assert ours[0].get_embedding_dimension() == theirs[0].get_embedding_dimension()
    ours[0].max_seq_length = 5
    assert ours.max_seq_length == ours.get_max_seq_length() == 5
    modules = list(theirs)
    composed = SentenceTransformer(modules=modules)
    assert np.allclose(composed.encode(TEXTS), theirs.encode(TEXTS), atol=5e-6)


def test_settings_can_be_written(theirs, ours):
    assert ours.prompts == theirs.prompts
    for model in (theirs, ours):
        model.prompts["query"] = "find: "
        model.default_prompt_name = "query"
    assert np.allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=5e-6)
    theirs.default_prompt_name, theirs.prompts["query"] = None, ""
    ours.similarity_fn_name = sentence_transformers.SimilarityFunction.DOT_PRODUCT
    assert ours.similarity_fn_name == "dot"
    ours.similarity_fn_name = None
    assert ours.similarity_fn_name == "cosine"
    with ours.truncate_embeddings(8):
        assert ours.encode(TEXTS).shape == (3, 8)
    assert ours.truncate_dim is None
    with pytest.raises(ValueError, match="default prompt 'querry'"):
        ours.default_prompt_name = "querry"


def test_keyword_tables(tiny_bert):
    model = SentenceTransformer(
        tiny_bert,
        model_kwargs={"torch_dtype": torch.float32, "attn_implementation": "sdpa"},
        processor_kwargs={"model_max_length": 7, "padding_side": "left"},
    )
    assert model.max_seq_length == 7
    with pytest.warns(FutureWarning, match="tokenizer_kwargs is now processor_kwargs"):
        model = SentenceTransformer(tiny_bert, tokenizer_kwargs={"model_max_length": 9})
    assert model.max_seq_length == 9
    for wrong in (
        {"backend": "openvino"},
        {"model_kwargs": {"load_in_8bit": True}},
        {"config_kwargs": {"hidden_size": 3}},
        {"model_kwargs": {"attn_implementation": "sdpaa"}},
    ):
        with pytest.raises(InputError):
            SentenceTransformer(tiny_bert, **wrong)
    with pytest.raises(InputError, match="takes the name or folder"):
        SentenceTransformer()


def test_the_backend_onnx(tiny_bert, ours):
    pytest.importorskip("onnxruntime")
    found = SentenceTransformer(tiny_bert, backend="onnx")
    assert (found.get_backend(), ours.get_backend()) == ("onnx", "torch")
    np.testing.assert_allclose(found.encode(TEXTS[0]), ours.encode(TEXTS[0]), atol=1e-5)


def test_what_is_not_read_is_refused(ours):
    with pytest.raises(InputError, match=r"inputs\[0\] is a tuple of 3"):
        ours.encode([("a", "b", "c")])
    with pytest.raises(ValueError, match="additional keyword arguments"):
        ours.encode(TEXTS, not_known=1)


def test_it_stands_for_their_class(ours):
    assert isinstance(ours, sentence_transformers.SentenceTransformer)
    assert "sentence_transformers" in str(type(ours))  # BERTopic and KeyBERT look for that
    vectors = ours.encode(TEXTS)
    for other in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert type(other) is SentenceTransformer
        assert np.array_equal(other.encode(TEXTS), vectors)


def test_saving_keeps_what_else_is_in_a_trainers_folder(ours, tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "optimizer.pt").write_text("x")
    ours.save_pretrained(str(tmp_path))
    assert (tmp_path / "checkpoint-5" / "optimizer.pt").read_text() == "x"
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert np.allclose(again.encode(TEXTS), ours.encode(TEXTS), atol=5e-6)


def test_several_processes(ours):
    pool = ours.start_multi_process_pool(["cpu"])
    try:
        for options in ({}, {"chunk_size": 1}):
            found = ours.encode(TEXTS, pool=pool, **options)
            assert np.allclose(found, ours.encode(TEXTS), atol=5e-6)
        with pytest.raises(InputError, match="prompt_name 'no'"):
            ours.encode(TEXTS, prompt_name="no", pool=pool)
    finally:
        ours.stop_multi_process_pool(pool)
