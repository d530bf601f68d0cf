"""Late-interaction folders: vectors and scores are those of MultiVectorEncoder."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from late_folders import body, pylate, stanford, words, write
from numpy.testing import assert_allclose

from polyvec import Embedder, MultiVectorEmbedder
from polyvec.data.texts import Record
from polyvec.embed.backbone import backbone as backbones
from polyvec.embed.backbone.fast import Int8Linear
from polyvec.embed.backbone.linears import Linear
from polyvec.errors import IndexStoreError, InputError, ModelError, ShapeError
from polyvec.index.plain import PlainIndex
from polyvec.interfaces import MultiVectors

st = pytest.importorskip("sentence_transformers")
from sentence_transformers import MultiVectorEncoder  # noqa: E402
from sentence_transformers.base.modules import Dense, Normalize, Transformer  # noqa: E402
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*were truncated:UserWarning")
TEXTS = [
    "a cat",
    "the dog sat on the mat, while nobody looks!",
    "",
    "two very long text of two cat : " * 8,
    "!",
]


def close(found, expected, atol=1e-5) -> None:
    assert [each.shape for each in found] == [tuple(each.shape) for each in expected]
    for a, b in zip(found, expected, strict=True):
        assert_allclose(a, b, atol=atol)


def theirs(folder: Path) -> MultiVectorEncoder:
    return MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)


def equal(folder: Path, **options) -> MultiVectorEmbedder:
    """The folder's embedder, after a check of vectors and scores."""
    embedder, reference = MultiVectorEmbedder.from_pretrained(folder, **options), theirs(folder)
    for name in ("encode", "encode_query", "encode_document"):
        expected = getattr(reference, name)(TEXTS, convert_to_numpy=True)
        close(getattr(embedder, name)(TEXTS), expected)
    queries, documents = embedder.encode_query(TEXTS), embedder.encode_document(TEXTS)
    scores = reference.similarity(queries, documents)
    assert_allclose(embedder.similarity(queries, documents), scores, rtol=1e-5, atol=1e-4)
    pairs = reference.similarity_pairwise(queries, documents)
    assert_allclose(embedder.similarity_pairwise(queries, documents), pairs, rtol=1e-5, atol=1e-4)
    return embedder


def saved_equal(embedder: MultiVectorEmbedder, folder: Path) -> None:
    """A save loads again to the same vectors, here and in sentence-transformers."""
    embedder.save_pretrained(folder)
    again, reference = MultiVectorEmbedder.from_pretrained(folder), theirs(folder)
    assert again.fingerprint() == embedder.fingerprint()
    for name in ("encode_query", "encode_document"):
        expected = getattr(embedder, name)(TEXTS)
        close(getattr(again, name)(TEXTS), expected, atol=1e-6)
        close(getattr(reference, name)(TEXTS, convert_to_numpy=True), expected)


# ---- Stanford's ColBERT -------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [{}, {"attend_to_mask_tokens": True}])
def test_stanford_colbert(tmp_path, metadata):
    embedder = equal(stanford(tmp_path / "in", metadata=metadata))
    assert {len(each) for each in embedder.encode_query(TEXTS)} == {12}
    saved_equal(embedder, tmp_path / "out")


@pytest.mark.parametrize("metadata", [{"mask_punctuation": False}, {"query_maxlen": 30}])
def test_stanford_settings(tmp_path, metadata):
    equal(stanford(tmp_path, metadata=metadata))


def test_stanford_colbert_without_metadata(tmp_path):
    folder = stanford(tmp_path)
    (folder / "artifact.metadata").unlink()
    assert {len(each) for each in equal(folder).encode_query(TEXTS)} == {32}


def test_markers_are_single_tokens(tmp_path):
    """As ColBERT inserts them: after CLS, before the text."""
    embedder = MultiVectorEmbedder.from_pretrained(stanford(tmp_path))
    vocabulary = words().get_vocab()
    (query,) = embedder.tokenize(["a cat"], role="query")
    expected = [vocabulary[word] for word in ("<s>", "[unused0]", "a", "cat", "</s>")]
    assert query.ids.tolist() == expected + [vocabulary["<mask>"]] * 7
    (document,) = embedder.tokenize(["a cat [unused1]"], role="document")
    assert document.ids.tolist().count(vocabulary["[unused1]"]) == 1


def test_stanford_with_its_own_code_is_refused(tmp_path):
    folder = stanford(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "jina_colbert", "auto_map": {"AutoModel": "modeling.JinaColBERT"}}
    write(folder / "config.json", config | own)
    with pytest.raises(ModelError, match="needs its own code"):
        MultiVectorEmbedder.from_pretrained(folder)


def test_stanford_refusals(tmp_path):
    with pytest.raises(ModelError, match="similarity 'l2' is not supported"):
        MultiVectorEmbedder.from_pretrained(stanford(tmp_path / "a", metadata={"similarity": "l2"}))
    body(tmp_path / "b", "bert", words())
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    write(tmp_path / "b" / "config.json", config | {"architectures": ["HF_ColBERT"]})
    with pytest.raises(ModelError, match=r"weight linear\.weight is missing"):
        MultiVectorEmbedder.from_pretrained(tmp_path / "b")


# ---- PyLate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["modernbert", "bert", "distilbert", "xlm-roberta", "mpnet"])
def test_pylate(tmp_path, family):
    """With packed batches, and (mpnet) with the model's own attention."""
    saved_equal(equal(pylate(tmp_path / "in", family, model_type="ColBERT")), tmp_path / "out")


@pytest.mark.parametrize(
    "stored",
    [
        {},  # older files have no model_type
        {"attend_to_expansion_tokens": True},
        {"do_query_expansion": False},
        {"do_query_expansion": True, "skiplist_words": []},
        {"skiplist_words": "absent"},
        {"query_length": "absent", "document_length": None},
        {"prompts": {"query": "query ", "document": "[D] passage "}},
        {"query_prefix": "", "document_prefix": ""},
        {"similarity_fn_name": "cosine"},
    ],
)
def test_pylate_settings(tmp_path, stored):
    embedder = equal(pylate(tmp_path / "in", "bert", **{"model_type": "ColBERT"} | stored))
    assert embedder.similarity_fn_name == "maxsim"
    saved_equal(embedder, tmp_path / "out")


def test_pylate_without_model_type(tmp_path):
    equal(pylate(tmp_path, "bert"))


def test_several_dense_layers(tmp_path):
    """As mxbai-edge-colbert."""
    folder = pylate(tmp_path / "in", "bert", sizes=(32, 24, 12), model_type="ColBERT")
    embedder = equal(folder)
    assert embedder.get_embedding_dimension() == 12 and embedder.encode("a cat").shape[1] == 12
    saved_equal(embedder, tmp_path / "out")


# ---- MultiVectorEncoder -------------------------------------------------------------------------

EXPANSIONS = [
    None,
    {"strategy": "fixed", "attend": False, "length": 10},
    {"strategy": "fixed", "attend": True, "length": 10, "token": "cat"},
    {"strategy": "min", "attend": False, "length": 10},
    {"strategy": "min", "attend": True, "length": 10},
]


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_multi_vector_encoder(tmp_path, family, expansion):
    body(tmp_path / "body", family, words())
    knobs = {"query_expansion": expansion, "query_length": 16, "document_length": 12}
    torch.manual_seed(1)
    parts = [
        Transformer(str(tmp_path / "body"), **knobs),
        Dense(32, 8, bias=True, module_input_name="token_embeddings"),
        MultiVectorMask(skiplist_words=["the", ","], skiplist_tasks=["query", "document"]),
        Normalize(module_input_name="token_embeddings"),
    ]
    made = MultiVectorEncoder(
        modules=parts,
        prompts={"query": "query : ", "document": ""},
        device="cpu",
        similarity_fn_name="meanmaxsim",
    )
    made.save_pretrained(str(tmp_path / "in"))
    embedder = equal(tmp_path / "in")
    assert embedder.similarity_fn_name == "meanmaxsim"
    saved_equal(embedder, tmp_path / "out")


@pytest.mark.parametrize(
    ("prompts", "default"),
    [({"query": "the cat "}, "query"), ({"x": "a dog "}, "x")],
)
def test_a_side_without_a_prompt_does_not_get_the_default_one(tmp_path, prompts, default):
    made = MultiVectorEncoder(str(pylate(tmp_path / "pylate", "bert")), device="cpu")
    made.save_pretrained(str(tmp_path / "model"))
    path = tmp_path / "model" / "config_sentence_transformers.json"
    stored = {**json.loads(path.read_text()), "prompts": prompts, "default_prompt_name": default}
    path.write_text(json.dumps(stored))
    equal(tmp_path / "model")


def test_unknown_modules_and_settings_are_refused(tmp_path):
    folder = pylate(tmp_path, "bert", model_type="ColBERT")
    listed = json.loads((folder / "modules.json").read_text())
    pooled = {
        "idx": 2,
        "name": "2",
        "path": "2_Pool",
        "type": "pylate.models.Pool.HierarchicalPool",
    }
    write(folder / "modules.json", [*listed, pooled])
    with pytest.raises(ModelError, match="module 'HierarchicalPool' is not supported"):
        MultiVectorEmbedder.from_pretrained(folder)
    write(folder / "modules.json", [*listed, pooled | {"type": "custom.Pool"}])
    with pytest.raises(ModelError, match=r"custom\.Pool is the model's own code"):
        MultiVectorEmbedder.from_pretrained(folder)


def test_settings_of_the_transformer_are_obeyed_or_refused(tmp_path):
    folder = pylate(tmp_path, "bert", model_type="ColBERT")
    path = folder / "sentence_bert_config.json"
    stored = json.loads(path.read_text())
    write(path, stored | {"tokenizer_args": {"truncation_side": "left"}})
    found = MultiVectorEmbedder.from_pretrained(folder).encode(TEXTS)  # without markers, which stay
    close(found, theirs(folder).encode(TEXTS, convert_to_numpy=True))
    write(path, stored | {"processing_kwargs": {"text": {"max_length": 8}}})
    with pytest.raises(ModelError, match="processing_kwargs is not supported"):
        MultiVectorEmbedder.from_pretrained(folder)
    write(path, stored | {"max_length": 8})
    with pytest.raises(ModelError, match="key 'max_length' is not known"):
        MultiVectorEmbedder.from_pretrained(folder)


# ---- bge-m3 -------------------------------------------------------------------------------------


def test_colbert_head_of_bge_m3(tmp_path):
    """FlagEmbedding: a linear map of all states but that of CLS, normalised; the mean of MaxSim."""
    folder = tmp_path / "in"
    body(folder, "xlm-roberta", words())
    torch.save(torch.nn.Linear(32, 8).state_dict(), folder / "colbert_linear.pt")
    embedder = MultiVectorEmbedder.from_pretrained(folder)
    tokenizer, model = (
        tf.AutoTokenizer.from_pretrained(folder),
        tf.AutoModel.from_pretrained(folder),
    )
    head = torch.load(folder / "colbert_linear.pt", weights_only=True)
    expected = []
    for text in TEXTS[:3]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model.eval()(input_ids=ids).last_hidden_state[0, 1:]
        vectors = states @ head["weight"].T + head["bias"]
        expected.append(torch.nn.functional.normalize(vectors, dim=-1).numpy())
    for name in ("encode", "encode_query", "encode_document"):
        close(getattr(embedder, name)(TEXTS[:3]), expected)
    score = (expected[0] @ expected[1].T).max(axis=1).sum() / len(expected[0])
    assert_allclose(embedder.similarity([expected[0]], [expected[1]]), [[score]], atol=1e-5)
    saved_equal(embedder, tmp_path / "out")


# ---- the embedder -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def late(tmp_path_factory) -> Path:
    return stanford(tmp_path_factory.mktemp("late"))


def test_fewer_bits_give_vectors_near_the_exact_ones(late, monkeypatch):
    """Unattended query tokens and markers included, which no sample has seen."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("oneDNN's layouts are used on x86 processors with AVX2 only")
    monkeypatch.setattr(backbones, "fast_linears", lambda: (Int8Linear, Linear))
    exact = MultiVectorEmbedder.from_pretrained(late)
    found = MultiVectorEmbedder.from_pretrained(late, dtype="fast")
    assert found.backbone.products == "static int8"
    texts = ["a cat sat on the mat", "no", "stocks fell on Monday, and rose again"]
    for name in ("encode_query", "encode_document"):
        pairs = zip(getattr(exact, name)(texts), getattr(found, name)(texts), strict=True)
        for wanted, got in pairs:
            assert (np.asarray(wanted) * np.asarray(got)).sum(axis=1).min() > 0.97


def test_a_late_interaction_folder_is_never_a_dense_one(late, tmp_path):
    folders = [late, pylate(tmp_path / "pylate", "bert")]
    MultiVectorEmbedder.from_pretrained(late).save_pretrained(tmp_path / "saved")
    for folder in [*folders, tmp_path / "saved"]:
        with pytest.raises(ModelError, match=r"late-interaction .*MultiVectorEmbedder"):
            Embedder.from_pretrained(folder)


def test_colbert_architecture_with_modules_is_never_a_dense_model(tmp_path):
    folder = stanford(tmp_path)
    transformer = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.Transformer"}
    pooling = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.Pooling"}
    write(folder / "modules.json", [transformer, pooling])
    with pytest.raises(ModelError, match="late-interaction"):
        Embedder.from_pretrained(folder)
    with pytest.raises(ModelError, match="module 'Pooling' is not supported"):
        MultiVectorEmbedder.from_pretrained(folder)


def test_models_of_pages_are_refused(tmp_path):
    folder = stanford(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"architectures": ["ColPaliForRetrieval"]})
    for loader in (Embedder, MultiVectorEmbedder):
        with pytest.raises(ModelError, match=r"ColPaliForRetrieval is .* images of pages"):
            loader.from_pretrained(folder)


def test_a_dense_folder_is_no_late_interaction_one(tiny_bert):
    with pytest.raises(ModelError, match="is not a late-interaction model"):
        MultiVectorEmbedder.from_pretrained(tiny_bert)


def test_vectors_do_not_depend_on_neighbours(late):
    embedder = MultiVectorEmbedder.from_pretrained(late)
    for encode in (embedder.encode_query, embedder.encode_document):
        together = encode(TEXTS)
        close([encode(text) for text in TEXTS], together)
        close(encode(TEXTS[::-1], batch_size=2)[::-1], together)
    padded = MultiVectorEmbedder.from_pretrained(late, layout="padded")
    assert embedder.backbone.layout == "packed" and padded.backbone.layout == "padded"
    close(padded.encode_query(TEXTS), embedder.encode_query(TEXTS))


def test_bfloat16(late):
    full = MultiVectorEmbedder.from_pretrained(late)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        half = MultiVectorEmbedder.from_pretrained(late, dtype="bfloat16")
    for a, b in zip(full.encode_document(TEXTS), half.encode_document(TEXTS), strict=True):
        assert (a * b).sum(axis=1).min(initial=1) > 0.99


def test_vectors_and_report(late):
    embedder = MultiVectorEmbedder.from_pretrained(late)
    vectors, report = embedder.encode_vectors(TEXTS, role="document")
    assert isinstance(vectors, MultiVectors) and len(vectors) == len(TEXTS)
    assert report.num_texts == len(TEXTS) and report.num_truncated == 1
    assert embedder.encode_vectors([])[0].dimension == 16
    assert embedder.similarity(vectors, vectors).shape == (5, 5)
    with pytest.raises(ShapeError, match="several vectors"):
        embedder.encode_iter(TEXTS)


def test_options(late):
    embedder = MultiVectorEmbedder.from_pretrained(late, query_length=8, document_length=6)
    assert {len(each) for each in embedder.encode_query(TEXTS)} == {8}
    assert max(map(len, embedder.encode_document(TEXTS))) <= 6
    with pytest.raises(InputError, match="query_length 600 exceeds"):
        MultiVectorEmbedder.from_pretrained(late, query_length=600)
    with pytest.raises(InputError, match="similarity 'cosine' is not known"):
        MultiVectorEmbedder.from_pretrained(late, similarity_fn_name="cosine")
    with pytest.raises(InputError, match="role 'passage' is not known"):
        embedder.encode(["a"], role="passage")


def test_an_index_of_plain_files_refuses_it(late, tmp_path):
    embedder = MultiVectorEmbedder.from_pretrained(late)
    with pytest.raises(IndexStoreError, match="gives several vectors per text"):
        PlainIndex.build(tmp_path / "index", [Record("1", "a cat")], embedder)


# ---- scores -------------------------------------------------------------------------------------


def test_scores_by_hand(late, monkeypatch):
    from polyvec.embed.projection import late_interaction

    random = np.random.default_rng(0)
    make = lambda sizes: [random.normal(size=(n, 3)).astype(np.float32) for n in sizes]  # noqa: E731
    queries, documents = make([2, 5, 1]), make([4, 0, 7, 1, 0])
    expected = [
        [(q @ d.T).max(axis=1).sum() if len(d) else -1e9 for d in documents] for q in queries
    ]
    for block in (1, 20, 2**24):
        monkeypatch.setattr(late_interaction, "BLOCK_ELEMENTS", block)
        assert_allclose(late_interaction.max_similarities(queries, documents), expected, rtol=1e-5)
    means = np.array(expected) / np.array([[2], [5], [1]])
    found = late_interaction.max_similarities(queries, documents[:1], "meanmaxsim")
    assert_allclose(found, means[:, :1], rtol=1e-5)
    one = late_interaction.max_similarities(queries[0], documents[0])
    assert_allclose(one, [[expected[0][0]]], rtol=1e-5)


def test_bad_vectors_are_refused():
    from polyvec.embed.projection.late_interaction import max_similarities

    good = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="vectors of text 1 hold NaN"):
        max_similarities([good], [good, np.full((2, 3), np.nan)])
    with pytest.raises(ShapeError, match="queries have 3 dimensions, documents 4"):
        max_similarities([good], [np.ones((2, 4))])
    with pytest.raises(ShapeError, match="expected"):
        max_similarities([good, np.ones(3)], [good])
    for wrong in (["a text"], "a text", [{"a": 1}]):
        with pytest.raises(InputError, match=r"similarity takes the vectors of texts"):
            max_similarities(wrong, [good])
