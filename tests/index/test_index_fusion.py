"""Scores of several rankings on one scale."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from polyvec.errors import DataError, InputError, ShapeError
from polyvec.index.fusion import min_max_fusion, reciprocal_rank_fusion, retrieved


def test_each_query_is_scaled_by_itself():
    dense = np.array([[1.0, 2.0, 3.0], [10.0, 30.0, 20.0]], np.float32)
    sparse = np.array([[0.0, 4.0, 0.0], [7.0, 7.0, 7.0]], np.float32)
    fused = min_max_fusion([dense, sparse])
    assert_allclose(fused, [[0, 0.75, 0.5], [0, 0.5, 0.25]])
    assert_allclose(min_max_fusion([dense, sparse], [1, 0]), [[0, 0.5, 1], [0, 1, 0.5]])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="shapes"):
        min_max_fusion([np.zeros((1, 2)), np.zeros((2, 1))])
    with pytest.raises(InputError, match="1 weights for 2"):
        min_max_fusion([np.zeros((1, 2)), np.zeros((1, 2))], [1.0])


def test_scores_over_retrieved_documents_are_those_of_promptreps_code():
    """Values by fuse() of ielab/PromptReps@e063628, hybrid.py, for lists of five."""
    dense = np.array([[2.04, -2.56, 0.42, -0.57, -0.45, -0.22, -2.02, -0.23]], np.float32)
    sparse = np.array([[0, 3.3, 0.2, 0, 0, 0, 0, 0]], np.float32)
    masks = [retrieved(dense, 5), retrieved(sparse, 5, positive=True)]
    fused = min_max_fusion([dense, sparse], [0.5, 0.5], masks)
    expected = {0: 0.5, 1: 0.5, 2: 0.174699, 4: 0.0, 5: 0.046185, 7: 0.044177}
    assert_allclose(fused[0], [expected.get(row, -1) for row in range(8)], atol=1e-6)


def test_a_member_that_retrieves_nothing_adds_nothing():
    dense, nothing = np.array([[1.0, 3.0, 2.0]]), np.zeros((1, 3))
    masks = [retrieved(dense, 2), retrieved(nothing, 2, positive=True)]
    assert_allclose(min_max_fusion([dense, nothing], [0.5, 0.5], masks), [[-1, 0.5, 0]])


def test_reciprocal_ranks_are_added():
    fused = reciprocal_rank_fusion([["a", "b", "c"], ["c", "d"]])
    assert [document for document, _ in fused] == ["c", "a", "b", "d"]
    assert_allclose(
        [score for _, score in fused], [1 / 63 + 1 / 61, 1 / 61, 1 / 62, 1 / 62], rtol=1e-12
    )
    assert reciprocal_rank_fusion([["a", "b"], ["b", "a"]], weights=[1, 3])[0][0] == "b"
    assert reciprocal_rank_fusion([]) == []


def test_rankings_that_cannot_be_fused_are_refused():
    with pytest.raises(DataError, match="ranking 1 holds document 'b' twice"):
        reciprocal_rank_fusion([["a"], ["b", "a", "b"]])
    with pytest.raises(InputError, match="1 weights for 2"):
        reciprocal_rank_fusion([["a"], ["b"]], weights=[1.0])
    with pytest.raises(InputError, match="k is -1"):
        reciprocal_rank_fusion([["a"]], k=-1)
