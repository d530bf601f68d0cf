"""CrossEncoder and SparseEncoder of polyvec.sentence_transformers beside sentence-transformers'."""

import copy
import pickle
import shutil
import warnings

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers.readers import InputExample
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification

from polyvec import Embedder
from polyvec.errors import InputError, ModelError
from polyvec.sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder

PAIRS = [("a cat", "a kitten"), ("rain", "the weather in spring, at length"), ("x", "y")]
TEXTS = ["a cat", "the rain in spring", "x"]
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def saved(kind, tiny_bert, folder, **options):
    """A folder with a random model of this class and the tokenizer of tiny_bert."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
        **options,
    )
    kind(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=[1, 3])
def rerankers(request, tiny_bert, tmp_path_factory):
    folder = saved(
        BertForSequenceClassification,
        tiny_bert,
        tmp_path_factory.mktemp("cross"),
        num_labels=request.param,
    )
    return CrossEncoder(folder), sentence_transformers.CrossEncoder(folder, device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 1},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"prompt": "judge: "},
        {"apply_softmax": True},
        {"activation_fn": torch.nn.Tanh()},
        {"processing_kwargs": {"text": {"max_length": 5}}},
    ],
    ids=str,
)
def test_predict(rerankers, options):
    ours, theirs = rerankers
    for inputs in (PAIRS, PAIRS[0], [list(pair) for pair in PAIRS], np.array(PAIRS)):
        found, wanted = ours.predict(inputs, **options), theirs.predict(inputs, **options)
        assert type(found) is type(wanted)
        if isinstance(wanted, list):
            found, wanted = torch.stack(found), torch.stack(wanted)
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted), **CLOSE)


def test_rank(rerankers):
    ours, theirs = rerankers
    if ours.num_labels > 1:
        with pytest.raises(ValueError, match="num_labels=1"):
            ours.rank("a", TEXTS)
        return
    wanted = theirs.rank("a cat", TEXTS, top_k=2, return_documents=True)
    found = ours.rank("a cat", TEXTS, top_k=2, return_documents=True)
    assert [(r["corpus_id"], r["text"]) for r in found] == [
        (r["corpus_id"], r["text"]) for r in wanted
    ]
    assert np.allclose([r["score"] for r in found], [r["score"] for r in wanted], atol=1e-5)


def test_a_saved_reranker_is_read_by_both(rerankers, tmp_path):
    ours, _ = rerankers
    ours.activation_fn = torch.nn.Tanh()
    try:
        ours.save_pretrained(tmp_path)
        wanted = ours.predict(PAIRS)
        again = sentence_transformers.CrossEncoder(str(tmp_path), device="cpu")
        for model in (CrossEncoder(tmp_path), again):
            assert np.allclose(model.predict(PAIRS), wanted, atol=2e-6)
    finally:
        ours.activation_fn = torch.nn.Sigmoid() if ours.num_labels == 1 else torch.nn.Identity()


def test_a_reranker_stands_for_theirs(rerankers):
    ours, theirs = rerankers
    assert isinstance(ours, sentence_transformers.CrossEncoder)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is CrossEncoder
        assert np.array_equal(other.predict(PAIRS), ours.predict(PAIRS))
    features = theirs.preprocess(PAIRS)
    torch.testing.assert_close(ours(features)["scores"], theirs(features)["scores"], **CLOSE)
    with pytest.raises(InputError, match=r"inputs\[1\] is 'b'"):
        ours.predict([("a", "b"), "b"])


def test_no_head_is_drawn_in_silence(tiny_bert, tmp_path):
    with pytest.warns(UserWarning, match="start at random, the first classifier"):
        model = CrossEncoder(_body(tiny_bert, tmp_path))
    assert model.num_labels == 1
    several = shutil.copytree(tiny_bert, tmp_path / "several")
    (several / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    with pytest.raises(ModelError, match="several modules"):
        CrossEncoder(several)


def _body(tiny_bert, folder):
    Embedder(tiny_bert).backbone.model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sparse(tiny_bert, tmp_path_factory):
    folder = saved(BertForMaskedLM, tiny_bert, tmp_path_factory.mktemp("sparse"))
    return SparseEncoder(folder), sentence_transformers.SparseEncoder(folder, device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"convert_to_sparse_tensor": False},
        {"convert_to_tensor": False},
        {"max_active_dims": 5},
        {"save_to_cpu": True, "batch_size": 1},
    ],
    ids=str,
)
def test_sparse_vectors(sparse, options):
    ours, theirs = sparse
    for inputs in (TEXTS, "a cat"):
        found, wanted = ours.encode(inputs, **options), theirs.encode(inputs, **options)
        assert type(found) is type(wanted)
        if isinstance(wanted, list):
            assert [each.layout for each in found] == [each.layout for each in wanted]
            found, wanted = torch.stack(found), torch.stack(wanted)
        assert found.layout == wanted.layout
        torch.testing.assert_close(found.to_dense(), wanted.to_dense(), atol=5e-5, rtol=1e-5)


def test_what_sparse_vectors_say(sparse):
    ours, theirs = sparse
    vectors = theirs.encode(TEXTS, max_active_dims=7)
    assert ours.decode(vectors, top_k=3) == theirs.decode(vectors, top_k=3)
    assert ours.decode(vectors[0]) == theirs.decode(vectors[0])
    found, wanted = ours.sparsity(vectors), theirs.sparsity(vectors)
    assert found == pytest.approx(wanted)
    for b in (vectors, vectors[1]):
        torch.testing.assert_close(
            ours.intersection(vectors[0], b).to_dense(),
            theirs.intersection(vectors[0], b).to_dense(),
        )
    assert ours.similarity_fn_name == theirs.similarity_fn_name == "dot"
    torch.testing.assert_close(
        ours.similarity(vectors, vectors), theirs.similarity(vectors, vectors).to_dense()
    )
    assert isinstance(ours, sentence_transformers.SparseEncoder)


def test_arguments_of_a_wrong_kind_are_one_line(tiny_bert):
    """None of them is another library's error, and all are told before weights are read."""
    for wrong in (
        {"model_kwargs": "x"},
        {"model_kwargs": {3: 4}},
        {"model_kwargs": {"dtype": [1]}},
        {"model_kwargs": {"device_map": 3}},
        {"tokenizer_kwargs": 3},
        {"processor_kwargs": {"model_max_length": "x"}},
        {"processor_kwargs": {"truncation_side": "up"}},
        {"config_kwargs": 3},
        {"prompts": "x"},
        {"modules": 3},
        {"modules": [3]},
    ):
        name = None if "modules" in wrong else str(tiny_bert)
        for kind in (CrossEncoder, SentenceTransformer):
            with pytest.raises(InputError) as caught, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind(name, **wrong)
            assert "\n" not in str(caught.value)


def test_calls_of_a_wrong_kind_are_one_line(rerankers):
    ours, _ = rerankers
    for call in (
        lambda: ours.predict(5),
        lambda: ours.predict(PAIRS, activation_fn=3),
        lambda: ours.predict(PAIRS, activation_fn=lambda logits: None),
        lambda: ours.predict(PAIRS, pool={}),
        lambda: ours.predict([("a", "\ud800")]),
        lambda: ours({"a": 1}),
        lambda: ours.append(torch.nn.Linear(1, 1)),
        lambda: ours.pop(0),
        lambda: ours[3],
        lambda: ours.set_keep_in_fp32_modules(["0.model"]),
    ):
        with pytest.raises(InputError):
            call()
    if ours.num_labels == 1:
        for documents, top_k in (("ab", None), (None, None), (3, None), (TEXTS, "x"), (TEXTS, -1)):
            with pytest.raises(InputError):
                ours.rank("a", documents, top_k=top_k)


def test_older_and_rarer_methods_of_a_reranker(rerankers, caplog):
    ours, theirs = rerankers
    with pytest.warns(DeprecationWarning, match="is now activation_fn"):
        assert ours.default_activation_function is ours.activation_fn
    assert type(ours.get_default_activation_fn()) is type(theirs.get_default_activation_fn())
    assert len(ours) == 1 and next(iter(ours)).auto_model is ours.model is ours[-1].model
    assert ours[0].tokenizer is ours.tokenizer and ours[0].max_seq_length == ours.max_length
    features, wanted = ours.preprocess(PAIRS), theirs.preprocess(PAIRS)
    assert type(features) is type(wanted) and set(features) == set(wanted)
    assert ours.preprocess([]) == theirs.preprocess([]) == {}
    if ours.num_labels == 1:
        assert ours.rank("a", TEXTS, convert_to_tensor=True) == ours.rank("a", TEXTS)
        assert "convert_to_tensor has no effect" in caplog.text


def test_a_reranker_is_fitted_as_theirs(tiny_bert, tmp_path, monkeypatch):
    """The older `fit`, with dropout off; the scores move as in sentence-transformers."""
    monkeypatch.chdir(tmp_path)  # where it makes a folder of checkpoints
    folder = saved(
        BertForSequenceClassification,
        tiny_bert,
        tmp_path / "model",
        num_labels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    examples = [InputExample(texts=list(p), label=float(i % 2)) for i, p in enumerate(PAIRS)]
    scores = []
    for kind in (CrossEncoder, sentence_transformers.CrossEncoder):
        model = kind(folder, device="cpu")
        model.fit(
            DataLoader(examples, batch_size=3),
            epochs=2,
            warmup_steps=0,
            optimizer_params={"lr": 1e-3},
            show_progress_bar=False,
        )
        scores.append(model.predict(PAIRS))
    assert np.abs(scores[0] - CrossEncoder(folder).predict(PAIRS)).max() > 1e-3
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
