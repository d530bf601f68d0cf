"""Scores of several rankings on one scale."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from polyvec.errors import InputError, ShapeError
from polyvec.index.fusion import min_max_fusion


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
