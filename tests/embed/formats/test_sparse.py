"""Sparse models: sentence-transformers' SparseEncoder folders, and bge-m3's sparse head."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from families import VOCAB, tokenizer
from numpy.testing import assert_allclose
from sparse_folders import inference_free, m3, masked, splade, static, write

from polyvec import Embedder
from polyvec.errors import InputError, ModelError
from polyvec.interfaces import SparseVectors

st = pytest.importorskip("sentence_transformers")
from sentence_transformers import SparseEncoder  # noqa: E402
from sentence_transformers.sentence_transformer import modules as dense_modules  # noqa: E402
from sentence_transformers.sparse_encoder import modules  # noqa: E402

TEXTS = ["a cat", "the dog sat on the mat while nobody looks", "", "vector : query ? " * 20]


def reference(folder: Path, texts=TEXTS) -> np.ndarray:
    model = SparseEncoder(str(folder), device="cpu", local_files_only=True)
    return model.encode(texts, convert_to_sparse_tensor=False).numpy()


def equal(folder: Path, **options) -> Embedder:
    """The folder's embedder, after a check that its vectors are sentence-transformers'."""
    embedder = Embedder.from_pretrained(folder, **options)
    expected = reference(folder)
    assert np.count_nonzero(expected)
    assert_allclose(embedder.encode(TEXTS, truncate="silent"), expected, rtol=1e-5, atol=1e-5)
    return embedder


def saved_equal(embedder: Embedder, folder: Path) -> None:
    """A save loads again to the same vectors, here and in sentence-transformers."""
    embedder.save_pretrained(folder)
    expected = embedder.encode(TEXTS, truncate="silent")
    again = Embedder.from_pretrained(folder)
    assert_allclose(again.encode(TEXTS, truncate="silent"), expected, atol=1e-6)
    assert_allclose(reference(folder), expected, rtol=1e-5, atol=1e-5)
    assert again.fingerprint() == embedder.fingerprint()


@pytest.mark.parametrize(
    "family", ["bert", "distilbert", "roberta", "xlm-roberta", "modernbert", "mpnet", "deberta-v2"]
)
def test_splade_folder(tmp_path, family):
    embedder = equal(splade(tmp_path / "in", family))
    assert embedder.output_kind == "sparse" and embedder.similarity_fn_name == "dot"
    vectors, _ = embedder.encode_vectors(["a cat"])
    assert isinstance(vectors, SparseVectors)
    assert_allclose(vectors.to_dense(), embedder.encode(["a cat"]))
    dense = embedder.encode(TEXTS, truncate="silent")
    expected = (dense @ dense[0])[:, None]
    for one in (vectors, torch.from_numpy(dense[:1]).to_sparse()):
        assert_allclose(embedder.similarity(dense, one), expected, rtol=1e-4)
    saved_equal(embedder, tmp_path / "out")


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_strategy": "sum"},
        {"activation_function": "log1p_relu"},
        {"pooling_strategy": "sum", "activation_function": "log1p_relu", "chunk_size": 3},
        {"word_embedding_dimension": VOCAB},
    ],
)
def test_splade_settings(tmp_path, pooling):
    saved_equal(equal(splade(tmp_path / "in", pooling=pooling)), tmp_path / "out")


def test_splade_with_the_newer_key(tmp_path):
    folder = splade(tmp_path / "in")
    write(folder / "1_SpladePooling" / "config.json", {"embedding_dimension": VOCAB})
    equal(folder)


def test_max_active_dims(tmp_path):
    folder = splade(tmp_path / "in", max_active_dims=5)
    embedder = equal(folder)
    assert (np.count_nonzero(embedder.encode(TEXTS, truncate="silent"), axis=1) == 5).all()
    saved_equal(embedder, tmp_path / "out")


def test_the_default_similarity_is_the_dot_product(tmp_path):
    folder = splade(tmp_path, similarity_fn_name=None)
    found = Embedder.from_pretrained(folder).similarity_fn_name
    assert found == SparseEncoder(str(folder), device="cpu").similarity_fn_name == "dot"


def test_folder_saved_by_sentence_transformers(tmp_path):
    """Its newest form: a Transformer with transformer_task fill-mask."""
    SparseEncoder(str(splade(tmp_path / "in")), device="cpu").save_pretrained(str(tmp_path / "st"))
    equal(tmp_path / "st")
    SparseEncoder(str(masked(tmp_path / "bare")), device="cpu").save_pretrained(
        str(tmp_path / "new")
    )
    saved_equal(equal(tmp_path / "new"), tmp_path / "out")


def test_bare_masked_model_as_splade(tmp_path):
    """As SparseEncoder takes it; without `output` it stays a dense model."""
    folder = masked(tmp_path / "in")
    embedder = equal(folder, output="sparse")
    assert embedder.similarity_fn_name == "dot"
    saved_equal(embedder, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Embedder.from_pretrained(folder).get_embedding_dimension() == 32


@pytest.mark.parametrize("normalize", [False, True])
def test_csr_folder(tmp_path, normalize):
    folder = masked(tmp_path / "bare")
    body = dense_modules.Transformer(str(folder))
    torch.manual_seed(0)
    encoder = modules.SparseAutoEncoder(32, 64, k=6, k_aux=8, normalize=normalize)
    torch.nn.init.normal_(encoder.pre_bias)
    torch.nn.init.normal_(encoder.latent_bias)
    parts = [body, dense_modules.Pooling(32, "mean"), encoder]
    SparseEncoder(modules=parts, device="cpu").save_pretrained(str(tmp_path / "st"))
    embedder = equal(tmp_path / "st")
    assert embedder.output_kind == "sparse" and embedder.get_embedding_dimension() == 64
    saved_equal(embedder, tmp_path / "out")
    written = json.loads((tmp_path / "st" / "config_sentence_transformers.json").read_text())
    write(tmp_path / "st" / "config_sentence_transformers.json", written | {"max_active_dims": 3})
    saved_equal(equal(tmp_path / "st"), tmp_path / "out")


def test_static_sparse_embedding(tmp_path):
    folder = static(tmp_path / "st")
    texts = ["a cat", "the cat and the cat", "vector : query ? " * 20]
    embedder = Embedder.from_pretrained(folder)
    expected = reference(folder, texts)
    assert_allclose(embedder.encode(texts, truncate="silent"), expected, atol=1e-6)
    embedder.save_pretrained(tmp_path / "out")
    again = Embedder.from_pretrained(tmp_path / "out")
    assert_allclose(again.encode(texts, truncate="silent"), expected, atol=1e-6)
    assert_allclose(reference(tmp_path / "out", texts), expected, atol=1e-6)


def test_static_sparse_embedding_from_idf(tmp_path):
    folder = static(tmp_path / "st")
    idf = {word: 0.5 + i / 100 for i, word in enumerate(["cat", "the", "mat"])}
    write(folder / "idf.json", idf)
    write(folder / "config.json", {"path": "idf.json"})
    words = tokenizer().get_vocab()
    found = Embedder.from_pretrained(folder).encode("the cat sat")
    expected = np.zeros(VOCAB)
    expected[[words["cat"], words["the"]]] = idf["cat"], idf["the"]
    assert_allclose(found, expected, atol=1e-6)
    write(folder / "config.json", {"path": "other.json"})
    with pytest.raises(ModelError, match=r"path 'other\.json' is not among the model's files"):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize("most", [None, 6])
def test_inference_free_splade(tmp_path, most):
    """A Router: the weights of a query come from a table, those of a document from a model."""
    folder = inference_free(tmp_path / "st", max_active_dims=most)
    embedder = Embedder.from_pretrained(folder)
    embedder.save_pretrained(tmp_path / "out")
    again = Embedder.from_pretrained(tmp_path / "out")
    saved = SparseEncoder(str(tmp_path / "out"), device="cpu")
    reference = SparseEncoder(str(folder), device="cpu")
    for method in ("encode_query", "encode_document"):
        expected = getattr(reference, method)(TEXTS[:2], convert_to_sparse_tensor=False).numpy()
        assert np.count_nonzero(expected)
        for each in (embedder, again):
            assert_allclose(getattr(each, method)(TEXTS[:2]), expected, atol=1e-5)
        found = getattr(saved, method)(TEXTS[:2], convert_to_sparse_tensor=False)
        assert_allclose(found, expected, atol=1e-5)


def lexical_weights(folder: Path, text: str) -> np.ndarray:
    """What FlagEmbedding's M3Embedder gives: the largest weight above 0 of each token that is
    not CLS, EOS, PAD or UNK."""
    words, body = (
        tf.AutoTokenizer.from_pretrained(folder),
        tf.AutoModel.from_pretrained(folder).eval(),
    )
    weights = torch.load(folder / "sparse_linear.pt", weights_only=True)
    ids = words(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = body(input_ids=ids).last_hidden_state[0]
        found = torch.relu(states @ weights["weight"].T + weights["bias"])[:, 0]
    out = np.zeros(VOCAB)
    for token, weight in zip(ids[0].tolist(), found.tolist(), strict=True):
        if token not in (0, 1, 2, 3):
            out[token] = max(out[token], weight)
    return out


def test_sparse_head_of_bge_m3(tmp_path):
    folder = m3(tmp_path / "m3")
    embedder = Embedder.from_pretrained(folder, output="sparse")
    texts = ["the cat sat on the mat the cat", "a dog ! 漢", "vector query"]
    expected = np.stack([lexical_weights(folder, text) for text in texts])
    assert np.count_nonzero(expected) > 5
    assert_allclose(embedder.encode(texts), expected, atol=1e-5)
    assert embedder.similarity_fn_name == "dot" and embedder.output_kind == "sparse"
    embedder.save_pretrained(tmp_path / "out")
    again = Embedder.from_pretrained(tmp_path / "out")
    assert_allclose(again.encode(texts), expected, atol=1e-5)
    dense = Embedder.from_pretrained(folder)
    assert dense.encode(texts).shape == (3, 32) and dense.output_kind == "dense"


def test_output_that_the_folder_lacks(tmp_path, tiny_bert):
    with pytest.raises(ModelError, match="output 'sparse' needs"):
        Embedder.from_pretrained(tiny_bert, output="sparse")
    with pytest.raises(InputError, match=r"'lexical' is not known\. Known: dense, sparse"):
        Embedder.from_pretrained(tiny_bert, output="lexical")
    with pytest.raises(InputError, match="MultiVectorEmbedder"):
        Embedder.from_pretrained(tiny_bert, output="multi")
    with pytest.raises(InputError, match="output 'dense', but the model's vectors are sparse"):
        Embedder.from_pretrained(splade(tmp_path / "splade"), output="dense")


def test_a_table_of_dense_vectors_has_no_sparse_output(tmp_path):
    words = tokenizer()
    module = dense_modules.StaticEmbedding(words.backend_tokenizer, embedding_dim=8)
    st.SentenceTransformer(modules=[module], device="cpu").save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="output 'sparse', but the model is a table"):
        Embedder.from_pretrained(tmp_path, output="sparse")


def test_bare_model_whose_queries_have_another_way(tmp_path):
    """opensearch-neural-sparse-encoding-doc-v1 before it had modules.json."""
    folder = masked(tmp_path)
    write(folder / "idf.json", {"cat": 1.0})
    with pytest.raises(ModelError, match=r"queries of this model are weighted by its idf\.json"):
        Embedder.from_pretrained(folder, output="sparse")


def test_pickled_code_in_a_head_is_refused(tmp_path):
    folder = m3(tmp_path / "m3")
    torch.save(torch.nn.Linear(32, 1), folder / "sparse_linear.pt")
    with pytest.raises(ModelError, match=r"sparse_linear\.pt: no file of tensors"):
        Embedder.from_pretrained(folder, output="sparse")
    torch.save(torch.nn.Linear(16, 1).state_dict(), folder / "sparse_linear.pt")
    with pytest.raises(ModelError, match=r"sparse_linear\.pt: does not fit"):
        Embedder.from_pretrained(folder, output="sparse")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling_strategy": "mean"}, "pooling_strategy 'mean' is not known"),
        ({"activation_function": "gelu"}, "activation_function 'gelu' is not known"),
        ({"weights": 1}, "key 'weights' is not known"),
    ],
)
def test_unknown_settings_are_refused(tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        Embedder.from_pretrained(splade(tmp_path, pooling=change))


def test_logits_are_never_pooled_as_states(tmp_path):
    folder = splade(tmp_path)
    listed = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", listed[:1])
    with pytest.raises(ModelError, match="the transformer gives logits"):
        Embedder.from_pretrained(folder)
    listed[0]["type"] = "sentence_transformers.models.Transformer"
    write(folder / "modules.json", listed)
    with pytest.raises(ModelError, match="SpladePooling pools logits"):
        Embedder.from_pretrained(folder)
