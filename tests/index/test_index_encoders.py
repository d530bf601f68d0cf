"""An index takes any TextEncoder, and ranks as evaluation does."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hashed_words import HashedWords, Several, Sparse

from polyvec import Embedder
from polyvec.data.tasks.folder import read_folder
from polyvec.data.texts import Record
from polyvec.errors import DataError, IndexStoreError, InputError, ModelError
from polyvec.evaluate.encoder import TaskEncoder
from polyvec.evaluate.tasks import Evaluator, evaluate
from polyvec.index import exact, plain
from polyvec.index.hybrid import HybridEmbedder
from polyvec.index.plain import PlainIndex
from polyvec.interfaces import EncodeReport, MultiVectors
from polyvec.storage.vector_cache import EmbeddingCache

WORDS = ["cat", "dog", "boat", "river", "code", "moon", "bread", "stone"]
TEXTS = [" ".join(pair) for pair in itertools.permutations(WORDS, 2)]
QUERIES = ["cat boat", "moon", "stone bread code"]


@pytest.fixture
def hybrid(tiny_bert):
    one, two = (Embedder.from_pretrained(tiny_bert) for _ in range(2))
    two.similarity_fn_name, two.truncate_dim = "euclidean", 16
    return HybridEmbedder(members=[one, two], weights=[0.25, 0.75])


@pytest.fixture
def folder(tmp_path):
    """A retrieval task of all texts, without relevant documents in common."""
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asks = [{"_id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, asks)))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("q0\td1\t1\nq1\td30\t1\nq2\td9\t1\n")
    return tmp_path


def records():
    return [Record(f"d{i}", text) for i, text in enumerate(TEXTS)]


def scores_by_id(index, model):
    found = index.search(QUERIES, model, top_k=len(TEXTS))
    return [{hit.id: hit.score for hit in hits} for hits in found]


@pytest.mark.parametrize("kind", [HashedWords, Sparse])
def test_a_minimal_model_builds_an_index_searches_and_is_evaluated(tmp_path, folder, kind):
    model = kind()
    index, report = PlainIndex.build(tmp_path / "index", records(), model)
    assert (report.num_embedded, report.encode.num_texts) == (56, 56)
    hits = PlainIndex.open(tmp_path / "index").search(QUERIES, model, top_k=2)
    assert {hit.text for hit in hits[0]} == {"cat boat", "boat cat"}
    assert hits[0][0].score == pytest.approx(1)
    assert PlainIndex.build(tmp_path / "index", records(), model)[1].num_embedded == 0
    assert evaluate(model, folder).scores["ndcg@10"] > 0
    with pytest.raises(IndexStoreError, match="built with another model"):
        index.search(QUERIES, kind(32))


def test_evaluation_caches_a_minimal_model_by_prompt(tmp_path, folder):
    cache, data = EmbeddingCache(tmp_path / "cache"), read_folder(folder)
    runs = [Evaluator(HashedWords(), cache=cache).measure(data) for _ in range(2)]
    assert [run.result.num_computed for run in runs] == [59, 0]
    assert runs[0].result.scores == runs[1].result.scores
    encoder = TaskEncoder(HashedWords(), cache=cache)
    plain, told = (encoder.encode(["moon"], "query", prompt) for prompt in (None, "find dogs"))
    assert not np.array_equal(plain, told)
    assert encoder.work.num_computed == 1


def test_a_hybrid_index_ranks_all_documents_as_evaluation_does(
    tmp_path, folder, hybrid, monkeypatch
):
    index, report = PlainIndex.build(tmp_path / "index", records(), hybrid)
    assert (report.num_texts, report.encode.num_texts) == (56, 56)
    assert index.manifest.similarity == "min-max"
    queries, documents = hybrid.encode_query(QUERIES), hybrid.encode_document(TEXTS)
    expected = hybrid.similarity(queries, documents).numpy()
    for block in (exact.SCORES, 60):  # whole, and one query at a time
        monkeypatch.setattr(exact, "SCORES", block)
        for row, scores in zip(expected, scores_by_id(index, hybrid), strict=True):
            np.testing.assert_allclose([scores[f"d{i}"] for i in range(56)], row, atol=1e-6)
    (outcome,) = [Evaluator(hybrid).measure(read_folder(folder)).outcome]
    hits = index.search(QUERIES, hybrid, top_k=5)
    for item, found in zip(outcome.items, hits, strict=True):
        assert [score for _, _, score, _ in item.found] == pytest.approx(
            [hit.score for hit in found], abs=1e-6
        )


def test_an_interrupted_hybrid_build_continues(tmp_path, hybrid, monkeypatch):
    monkeypatch.setattr(plain, "CHUNK", 20)
    monkeypatch.setattr(plain, "write_generation", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        PlainIndex.build(tmp_path, records(), hybrid)
    monkeypatch.undo()
    index, report = PlainIndex.build(tmp_path, records(), hybrid)
    assert report.num_embedded == 0
    np.testing.assert_allclose(index.vectors_NE, hybrid.encode_document(TEXTS), atol=1e-5)


def test_the_index_folder_of_a_plain_embedder_is_as_before(tmp_path, tiny_bert):
    """The keys that a manifest has where no option of the command line decided anything."""
    embedder = Embedder.from_pretrained(tiny_bert, prompts={"passage": "read: "})
    PlainIndex.build(tmp_path, records(), embedder, model="tiny")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert list(manifest) == [
        *("format", "model", "model_sha256", "prompt", "similarity"),
        *("dimension", "count", "vectors", "items"),
        *("items_crc32", "vectors_crc32", "crc32"),
    ]
    assert list(manifest.values())[:7] == [
        *(2, "tiny", embedder.fingerprint(), "read: ", "cosine", 32, 56),
    ]


def test_several_vectors_a_text_are_refused(tmp_path):
    with pytest.raises(IndexStoreError, match="Several gives several vectors per text; an index"):
        PlainIndex.build(tmp_path / "index", records(), Several())
    assert not (tmp_path / "index").exists()


def test_sparse_vectors_too_large_to_be_dense_are_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "SPARSE_LIMIT_BYTES", 4 * 56 * 64)
    PlainIndex.build(tmp_path / "fits", records(), Sparse())
    with pytest.raises(IndexStoreError, match=r"Sparse gives sparse vectors; 56 of 65 .* split"):
        PlainIndex.build(tmp_path / "index", records(), Sparse(65))
    assert not (tmp_path / "index").exists()


def test_a_hybrid_reads_a_generator_once_and_counts_for_all_members(hybrid):
    report = EncodeReport()
    chunks = list(hybrid.encode_iter(iter(TEXTS), chunk_size=20, report=report))
    assert [len(chunk) for chunk in chunks] == [20, 20, 16]
    np.testing.assert_allclose(np.concatenate(chunks), hybrid.encode(TEXTS), atol=1e-5)
    single = EncodeReport()
    list(hybrid.members[0].encode_iter(TEXTS, report=single))
    assert (report.num_texts, report.num_tokens) == (56, 2 * single.num_tokens)
    for wrong in ("a cat", {"a", "b"}):
        with pytest.raises(InputError, match="a list"):
            hybrid.encode_iter(wrong)


def test_a_hybrid_counts_the_truncations_of_the_shorter_member(hybrid):
    hybrid.members[1].max_seq_length = 4
    _, report = hybrid.encode_vectors(["one", "cat dog boat river code"])
    assert (report.num_truncated, report.truncated) == (1, [1])


def test_a_hybrids_vectors_depend_on_members_and_prompts_but_not_on_weights(hybrid, tiny_bert):
    other = HybridEmbedder(hybrid.members, [0.5, 0.5])
    assert other.fingerprint() != hybrid.fingerprint()
    assert other.vectors_fingerprint() == hybrid.vectors_fingerprint()
    prompted = Embedder.from_pretrained(tiny_bert, prompts={"query": "seek: ", "mine": "x"})
    third = HybridEmbedder([hybrid.members[0], prompted])
    assert third.prompts == {}
    assert third.prompt_key(role="query") == ("", None, "seek: ", None)
    assert third.prompt_key(role="query") != third.prompt_key(role="document")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 64), "gave 2 vectors for 3 texts"),
        ((3, 1), "expected at most 3 rows"),
        ((4, 64), "expected at most 3 rows"),
        ((3,), "expected at most 3 rows"),
    ],
)
def test_vectors_of_a_wrong_shape_are_refused(tmp_path, shape, message):
    """numpy would broadcast some of them, and leave rows uninitialised."""

    class Wrong(HashedWords):
        def encode_iter(self, inputs, **options):
            if len(list(inputs)):
                yield np.ones(shape, np.float32)

    records = [Record(text, text) for text in ("a", "b", "c")]
    with pytest.raises(ModelError, match=message):
        PlainIndex.build(tmp_path / "index", records, Wrong())


def test_a_string_is_one_query(tmp_path):
    index, _ = PlainIndex.build(tmp_path / "index", [Record("a", "a cat")], HashedWords())
    assert index.search("a cat", HashedWords()) == index.search(["a cat"], HashedWords())


@pytest.mark.parametrize(
    "queries",
    [{"text": "a cat"}, {"a cat"}, b"a cat", pd.DataFrame({"text": ["a cat"]}), np.array("a cat")],
    ids=lambda each: type(each).__name__,
)
def test_what_is_no_list_of_queries_is_refused_by_name(tmp_path, queries):
    index, _ = PlainIndex.build(tmp_path / "index", [Record("a", "a cat")], HashedWords())
    with pytest.raises(InputError, match=type(queries).__name__):
        index.search(queries, HashedWords())


def test_a_text_without_an_id_is_no_record(tmp_path):
    with pytest.raises(DataError, match="text 1 is a str, expected a Record"):
        PlainIndex.build(tmp_path / "index", ["a cat"], HashedWords())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_damaged_vector_is_named_by_its_id(tmp_path, value):
    records = [Record("a", "a cat"), Record("b", "a dog")]
    index, _ = PlainIndex.build(tmp_path / "index", records, HashedWords())
    damaged = np.array(index.vectors_NE)
    damaged[1] = value
    index = PlainIndex(index.folder, index.manifest, damaged, index.items)
    with pytest.raises(ModelError, match="query 'a cat' and text 'b' is NaN or infinite"):
        index.search(["a cat"], HashedWords())


def test_a_row_of_several_vectors_is_counted_from_the_end_too():
    several = MultiVectors.of([np.zeros((1, 4)), np.ones((2, 4))], 4)
    assert several[-1].tolist() == several[1].tolist() == [[1.0] * 4] * 2
    with pytest.raises(IndexError):
        several[2]
