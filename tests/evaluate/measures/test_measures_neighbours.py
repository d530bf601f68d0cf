"""Neighbours: values by hand, brute force over all pairs, and agreement with scikit-learn."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from polyvec.errors import DataError, SettingsError
from polyvec.evaluate.measures import hubness, intrinsic_dimension, k_occurrence, neighbours
from polyvec.index import exact

VECTORS = np.random.default_rng(0).standard_normal((200, 12)) + 0.5


@pytest.fixture(params=["whole", "blocks"], autouse=True)
def blocks(request, monkeypatch):
    if request.param == "blocks":
        monkeypatch.setattr(exact, "SCORES", 1700)
        monkeypatch.setattr(neighbours, "ROWS", 13)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 10, 199])
def test_k_occurrence_agrees_with_scikit_learn(metric, k):
    search = NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute").fit(VECTORS)
    rows = search.kneighbors(return_distance=False)  # without the vector itself
    expected = np.bincount(rows.ravel(), minlength=200)
    assert (k_occurrence(VECTORS, k, metric=metric) == expected).all()
    single = k_occurrence(VECTORS.astype(np.float32), k, metric=metric)
    assert single.sum() == 200 * k
    assert np.abs(single - expected).sum() <= 4
    assert hubness(VECTORS, k, metric=metric) == pytest.approx(
        0 if k == 199 else stats.skew(expected), abs=1e-12
    )


def brute_force(vectors, k):
    """The k nearest others by exact distance, of equal ones the first."""
    counts = [0] * len(vectors)
    for i, one in enumerate(vectors):
        far = [(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)), j)
               for j, other in enumerate(vectors) if j != i]  # fmt: skip
        for _, j in sorted(far)[:k]:
            counts[j] += 1
    return counts


@pytest.mark.parametrize("k", [1, 3, 8])
def test_of_equally_near_vectors_the_first_are_neighbours(k):
    # A grid around its mean in powers of two: products are exact, so that ties are ties.
    grid = [[float(x), float(y)] for x in (-2, -1, 1, 2) for y in (-2, -1, 1, 2)]
    found = k_occurrence(grid, k, metric="euclidean")
    assert found.tolist() == brute_force(grid, k)


def test_by_hand():
    star = [[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]]
    assert k_occurrence(star, 1, metric="euclidean").tolist() == [4, 1, 0, 0, 0]
    assert hubness(star, 1, metric="euclidean") == pytest.approx(4.8 / 2.4**1.5)
    same = np.ones((4, 3))
    assert k_occurrence(same, 2).tolist() == [3, 3, 2, 0]
    # Cosine looks at directions alone: vectors 0 and 1 are one, 2 and 3 another.
    assert k_occurrence([[1.0, 0], [9, 0], [0, 2], [0, 7]], 1).tolist() == [1, 1, 1, 1]
    assert hubness([[1.0, 0], [9, 0], [0, 2], [0, 7]], 1) == 0


def test_hubs_come_with_dimensions():
    """Radovanović et al.: the skewness grows with the dimension of random vectors."""
    found = [
        hubness(np.random.default_rng(1).standard_normal((600, e)), metric="euclidean")
        for e in (2, 20, 200)
    ]
    assert found[0] < 0.5 < found[1] < found[2]


def test_intrinsic_dimension_is_amsaleg_et_als():
    distances = NearestNeighbors(n_neighbors=20).fit(VECTORS).kneighbors()[0]
    expected = np.mean([-20 / sum(math.log(r / row[-1]) for r in row) for row in distances])
    assert intrinsic_dimension(VECTORS) == pytest.approx(expected)
    # Neighbours at 1 and 2 of the first, 1 and 1 ... : 0, 1, 3 on a line.
    by_hand = [2 / math.log(3), 2 / math.log(2), 2 / math.log(3 / 2)]
    assert intrinsic_dimension([[0.0], [1.0], [3.0]], 2) == pytest.approx(np.mean(by_hand))


def test_intrinsic_dimension_sees_a_plane_in_many_dimensions():
    plane = np.random.default_rng(2).uniform(size=(1500, 2))
    turned = plane @ np.random.default_rng(3).standard_normal((2, 50))
    assert 1.7 < intrinsic_dimension(turned, 50) < 2.3


def test_errors_name_what_came():
    for measure in (hubness, k_occurrence, intrinsic_dimension):
        with pytest.raises(
            SettingsError, match="k must be below the number of vectors, 200, not 200"
        ):
            measure(VECTORS, 200)
        with pytest.raises(SettingsError, match="k must be an integer of at least"):
            measure(VECTORS, 0)
        with pytest.raises(DataError, match="vector 0 holds NaN"):
            measure([[math.nan], [1.0], [2.0]], 2)
    with pytest.raises(SettingsError, match=r"'cosin' is not known. Did you mean 'cosine'"):
        hubness(VECTORS, metric="cosin")
    with pytest.raises(DataError, match="vector 1 is zero"):
        hubness([[1.0, 0], [0, 0]], 1)
    with pytest.raises(DataError, match="vector 1 has a duplicate; remove duplicates"):
        intrinsic_dimension([[0.0, 9], [1, 0], [2, 5], [1, 0]], 2)
    with pytest.raises(DataError, match="all neighbours of vector 0 are equally far"):
        intrinsic_dimension(np.eye(4), 2)
