"""Exact search equals a brute-force sort, whatever the blocks."""

import numpy as np
import pytest

from polyvec.embed.projection.similarity import SIMILARITIES
from polyvec.errors import DataError, InputError, ShapeError
from polyvec.index import exact


def brute_force(queries, documents, k, similarity):
    """In float64, pair by pair; equal scores by row."""
    scores = np.empty((len(queries), len(documents)))
    for i, q in enumerate(queries.astype(np.float64)):
        for j, d in enumerate(documents.astype(np.float64)):
            scores[i, j] = {
                "dot": lambda q, d: q @ d,
                "cosine": lambda q, d: q @ d / (np.linalg.norm(q) * np.linalg.norm(d)),
                "euclidean": lambda q, d: -np.sqrt(((q - d) ** 2).sum()),
                "manhattan": lambda q, d: -np.abs(q - d).sum(),
            }[similarity](q, d)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


def whole_numbers(*shape, seed=0):
    """Few different values, so that many scores are equal, and exactly so in float32."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


@pytest.mark.equality
@pytest.mark.parametrize("block", [1, 7, 64, 100_000])
@pytest.mark.parametrize("k", [1, 5, 20, 300])
@pytest.mark.parametrize("similarity", ["dot", "manhattan"])
def test_equal_scores_come_by_row_across_blocks(monkeypatch, similarity, k, block):
    monkeypatch.setattr(exact, "BLOCK", block)
    monkeypatch.setattr(exact, "QUERY_BLOCK", 2)
    queries, documents = whole_numbers(5, 6, seed=1), whole_numbers(200, 6)
    scores, rows = exact.top_k(queries, documents, k, similarity)
    expected_scores, expected_rows = brute_force(queries, documents, k, similarity)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)
    assert scores.shape == (5, min(k, 200))


@pytest.mark.parametrize("block", [33, 100_000])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_similarity_equals_brute_force(monkeypatch, similarity, block):
    monkeypatch.setattr(exact, "BLOCK", block)
    generator = np.random.default_rng(2)
    queries = generator.standard_normal((9, 16)).astype(np.float32)
    documents = generator.standard_normal((150, 16)).astype(np.float32)
    scores, rows = exact.top_k(queries, documents, 10, similarity)
    expected_scores, expected_rows = brute_force(queries, documents, 10, similarity)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)


@pytest.mark.equality
def test_all_documents_equal_give_the_first_rows(monkeypatch):
    monkeypatch.setattr(exact, "BLOCK", 10)
    scores, rows = exact.top_k(np.ones((2, 3)), np.ones((95, 3)), 3, "dot")
    np.testing.assert_array_equal(rows, [[0, 1, 2], [0, 1, 2]])
    np.testing.assert_array_equal(scores, np.full((2, 3), 3.0))


@pytest.mark.parametrize(("queries", "documents"), [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_find_or_to_ask(queries, documents):
    scores, rows = exact.top_k(np.zeros((queries, 5)), np.zeros((documents, 5)), 3)
    assert scores.shape == rows.shape == (queries, min(3, documents))


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k):
    with pytest.raises(InputError, match=f"top_k must be at least 1, got {k}"):
        exact.top_k(np.ones((1, 2)), np.ones((3, 2)), k)


@pytest.mark.parametrize("shapes", [((1, 2), (3, 4)), ((2,), (3, 2)), ((1, 2), (2,))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ShapeError, match="expected two matrices"):
        exact.top_k(np.ones(shapes[0]), np.ones(shapes[1]), 1)


def test_an_unknown_similarity_is_refused():
    with pytest.raises(InputError, match=r"'cosin' is not known. Did you mean 'cosine'\?"):
        exact.top_k(np.ones((1, 2)), np.ones((3, 2)), 1, "cosin")


def shifted(queries, documents):
    """Scores that depend on all documents."""
    scores = queries @ documents.T
    return scores - scores.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("scores", [1, 30, 450, 100_000])
@pytest.mark.parametrize("k", [1, 20, 300])
def test_a_function_is_given_all_documents_at_once(monkeypatch, scores, k):
    monkeypatch.setattr(exact, "SCORES", scores)
    queries, documents = whole_numbers(5, 6, seed=1), whole_numbers(128, 6)
    found_scores, found_rows = exact.top_k(queries, documents, k, shifted)
    expected = shifted(queries, documents)
    rows = np.argsort(-expected, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found_rows, rows)
    np.testing.assert_array_equal(found_scores, np.take_along_axis(expected, rows, 1))


@pytest.mark.parametrize("block", [7, 100_000])
@pytest.mark.parametrize("similarity", ["dot", shifted])
def test_a_document_is_not_its_own_neighbour(monkeypatch, similarity, block):
    monkeypatch.setattr(exact, "BLOCK", block)
    monkeypatch.setattr(exact, "QUERY_BLOCK", 3)
    monkeypatch.setattr(exact, "SCORES", 20 * 4)
    documents = whole_numbers(20, 4)
    _, all_rows = exact.top_k(documents, documents, 20, similarity)
    _, rows = exact.top_k(documents, documents, 20, similarity, skip_own_row=True)
    expected = [[row for row in found if row != own] for own, found in enumerate(all_rows)]
    np.testing.assert_array_equal(rows, expected)
    alone = exact.top_k(documents[:1], documents[:1], 3, similarity, skip_own_row=True)
    assert alone[1].shape == (1, 0)


@pytest.mark.parametrize("k", [2, 50])
def test_a_vector_of_nan_is_named_and_not_ranked(monkeypatch, k):
    monkeypatch.setattr(exact, "BLOCK", 10)
    documents = np.ones((40, 3), np.float32)
    documents[33, 1] = np.nan
    with pytest.raises(DataError, match="query 0 and document 33 is NaN"):
        exact.top_k(np.ones((2, 3)), documents, k)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_never_ranks(similarity, value):
    documents = np.eye(3, dtype=np.float32)
    documents[1, 2] = value
    with pytest.raises(exact.NotFiniteError, match="document 1 is NaN or infinite"):
        exact.top_k(np.ones((1, 3), np.float32), documents, 3, similarity)
    with pytest.raises(exact.NotFiniteError, match="query 1 and document"):
        exact.top_k(documents, np.ones((2, 3), np.float32), 2, similarity)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantised_vectors_are_refused(dtype):
    with pytest.raises(InputError, match="documents are quantised"):
        exact.top_k(np.ones((1, 3)), np.ones((2, 3), dtype), 1)


def test_a_vector_of_zeros_has_cosine_zero():
    scores, rows = exact.top_k(np.eye(3)[:1], np.zeros((2, 3)), 1)
    assert (scores.tolist(), rows.tolist()) == ([[0]], [[0]])
    assert exact.top_k(np.zeros((1, 3)), np.eye(3), 1)[0].tolist() == [[0]]


@pytest.mark.parametrize("block", [7, 100_000])
def test_lengths_that_are_known_change_nothing(monkeypatch, block):
    monkeypatch.setattr(exact, "BLOCK", block)
    generator = np.random.default_rng(3)
    queries = generator.standard_normal((9, 16)).astype(np.float32)
    documents = generator.standard_normal((150, 16)).astype(np.float32)
    documents *= 10.0 ** generator.integers(-6, 6, (150, 1))
    documents[5] = 0
    known = exact.inverse_lengths(documents)
    scores, rows = exact.top_k(queries, documents, 150, inverse_lengths_N=known)
    expected_scores, expected_rows = exact.top_k(queries, documents, 150)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    for value in (np.nan, np.inf, -np.inf):
        documents[7, 3] = value
        known = exact.inverse_lengths(documents)
        with pytest.raises(exact.NotFiniteError, match="document 7 is NaN or infinite"):
            exact.top_k(queries, documents, 3, inverse_lengths_N=known)
