"""Geometry: values by hand, brute force over all pairs, and agreement with torch."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from polyvec.errors import DataError, SettingsError, ShapeError
from polyvec.evaluate.measures import (
    alignment,
    cluster_isotropy,
    effective_rank,
    geometry,
    inputs,
    isoscore,
    isotropy,
    mean_cosine,
    uniformity,
)

draw = np.random.default_rng(0)
CONE = draw.standard_normal((150, 6)) * [3, 2, 1, 1, 0.5, 0.1] + [4, 0, 0, 1, 0, 0]
ROUND = np.random.default_rng(1).standard_normal((4000, 8))
OF_ONE_MATRIX = [uniformity, mean_cosine, isotropy, isoscore, effective_rank]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks much smaller than the data, and not dividing it."""
    monkeypatch.setattr(geometry, "BLOCK", 7)
    monkeypatch.setattr(inputs, "BLOCK", 7)
    monkeypatch.setattr(geometry, "PAIRS_BLOCK", 7)


@pytest.mark.parametrize("measure", OF_ONE_MATRIX)
def test_blocks_rows_order_and_precision_do_not_matter(measure, request):
    whole = measure(CONE)
    shuffled = CONE[np.random.default_rng(2).permutation(len(CONE))]
    assert measure(shuffled) == pytest.approx(whole)
    assert measure(CONE.astype(np.float32)) == pytest.approx(whole, rel=1e-4)
    assert measure(torch.from_numpy(CONE).float()) == pytest.approx(whole, rel=1e-4)
    request.getfixturevalue("small_blocks")
    assert measure(CONE) == pytest.approx(whole)


def unit(vectors):
    return torch.nn.functional.normalize(torch.from_numpy(np.asarray(vectors)), dim=1)


@pytest.mark.parametrize("t", [0.5, 2.0, 2000.0])
def test_uniformity_is_the_papers_code(t):
    squares = torch.pdist(unit(CONE)) ** 2
    expected = torch.logsumexp(-t * squares, 0) - math.log(len(squares))
    assert uniformity(CONE, t=t) == pytest.approx(expected.item())
    if t == 2:
        assert uniformity(CONE) == pytest.approx((-2 * squares).exp().mean().log().item())


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_alignment_is_the_papers_code(alpha, small_blocks):
    other = CONE + draw.standard_normal(CONE.shape)
    expected = (unit(CONE) - unit(other)).norm(dim=1).pow(alpha).mean()
    assert alignment(CONE, other, alpha=alpha) == pytest.approx(expected.item())


def test_alignment_and_uniformity_by_hand():
    collapsed = np.full((9, 4), 0.3, np.float32)
    assert alignment(collapsed, 2 * collapsed) == pytest.approx(0, abs=1e-6)
    assert uniformity(collapsed) == pytest.approx(0, abs=1e-6)
    assert alignment([[1.0, 0], [0, 1]], [[-1.0, 0], [0, 1]]) == pytest.approx((4 + 0) / 2)
    assert uniformity(np.eye(5)) == pytest.approx(-4)
    assert uniformity([[1.0, 0], [-1.0, 0]], t=3.0) == pytest.approx(-12)


def test_mean_cosine_is_that_of_all_pairs():
    pairs = combinations(unit(CONE).numpy(), 2)
    assert mean_cosine(CONE) == pytest.approx(np.mean([a @ b for a, b in pairs]))
    assert mean_cosine(np.eye(4)) == pytest.approx(0, abs=1e-12)
    assert mean_cosine([[1.0, 0], [-2.0, 0]]) == pytest.approx(-1)
    assert mean_cosine([[1.0, 1], [2.0, 2]]) == pytest.approx(1)


def test_isotropy_is_the_least_over_the_largest_partition_function(small_blocks):
    _, vectors = np.linalg.eigh(CONE.T @ CONE)
    sums = [np.exp(CONE @ (sign * c)).sum() for c in vectors.T for sign in (1, -1)]
    assert isotropy(CONE) == pytest.approx(min(sums) / max(sums))
    assert isotropy([[2.0, 0], [-2.0, 0]]) == pytest.approx(1 / math.cosh(2))
    assert isotropy(1e4 * CONE) == 0  # exp would overflow
    assert isotropy(np.concatenate([np.eye(3), -np.eye(3)])) == pytest.approx(1)
    assert isotropy(1e-9 * CONE) == pytest.approx(1)


def participation(vectors):
    """IsoScore in closed form: ((sum of variances)^2 / sum of their squares - 1) / (n - 1)."""
    covariance = np.cov(np.asarray(vectors, float).T)
    ratio = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    return (ratio - 1) / (len(covariance) - 1)


def test_isoscore_is_the_papers_algorithm(small_blocks):
    for vectors in (CONE, ROUND, CONE[:4]):  # the last has fewer vectors than dimensions
        assert isoscore(vectors) == pytest.approx(participation(vectors))
    # k of n dimensions used evenly: (k - 1) / (n - 1), the paper's reading of the score.
    for k in (1, 2, 5):
        evenly = np.concatenate([np.eye(5)[:k], -np.eye(5)[:k]])
        assert isoscore(evenly) == pytest.approx((k - 1) / 4, abs=1e-9)
    turned = CONE @ np.linalg.qr(draw.standard_normal((6, 6)))[0]
    for same in (turned, 1e-3 * CONE, CONE + 100):
        assert isoscore(same) == pytest.approx(isoscore(CONE))
    assert isoscore(ROUND) > 0.99


def test_cosines_see_anisotropy_where_isoscore_does_not():
    """Rudman et al.'s point: a mean far from 0 is no lack of isotropy."""
    assert mean_cosine(ROUND + 10) > 0.9
    assert isoscore(ROUND + 10) == pytest.approx(isoscore(ROUND))


def test_effective_rank_is_roy_and_vetterlis(small_blocks):
    for vectors in (CONE, CONE[:4], CONE.T):
        values = np.linalg.svd(vectors, compute_uv=False)
        shares = values / values.sum()
        expected = math.exp(-sum(share * math.log(share) for share in shares))
        assert effective_rank(vectors) == pytest.approx(expected)
    centred = CONE - CONE.mean(axis=0)
    assert effective_rank(CONE, center=True) == pytest.approx(effective_rank(centred))
    assert effective_rank(CONE, center=True) != pytest.approx(effective_rank(CONE))
    assert effective_rank(np.outer(np.arange(1, 60), np.arange(1, 9))) == pytest.approx(1)
    assert effective_rank(np.eye(7)) == pytest.approx(7)
    # Shares 3/4 and 1/4.
    expected = (4 / 3) ** 0.75 * 4**0.25
    assert effective_rank([[3.0, 0], [0, 1]]) == pytest.approx(expected)


def test_cluster_isotropy_sees_what_two_tight_clusters_hide():
    ball = 0.1 * ROUND[:1000]
    vectors = np.concatenate([ball + 5, ball - 5])
    labels = ["here"] * 1000 + ["there"] * 1000
    assert isoscore(vectors) < 0.01
    assert cluster_isotropy(vectors, labels) == pytest.approx(isoscore(ball))
    inside = cluster_isotropy(vectors, labels, isotropy)
    assert inside == pytest.approx(isotropy(ball - ball.mean(axis=0)))
    assert isotropy(vectors) < 0.01 < 0.9 < inside


def test_cluster_isotropy_weighs_clusters_by_size():
    sizes, start, expected = {"a": 100, "b": 30, "c": 20}, 0, 0.0
    labels = [name for name, size in sizes.items() for _ in range(size)]
    for size in sizes.values():
        expected += size / 150 * isoscore(CONE[start : start + size])
        start += size
    assert cluster_isotropy(CONE, labels) == pytest.approx(expected)
    mixed = draw.permutation(150)
    assert cluster_isotropy(CONE[mixed], np.array(labels)[mixed]) == pytest.approx(expected)
    alone = np.concatenate([CONE, [[9.0] * 6, [7.0] * 6, [7.0] * 6]])
    with_single = [*labels, "alone", "double", "double"]
    assert cluster_isotropy(alone, with_single) == pytest.approx(expected)


@pytest.mark.parametrize("measure", OF_ONE_MATRIX)
def test_vectors_that_are_none_are_errors(measure, small_blocks):
    bad = CONE.copy()
    bad[100, 2] = math.nan
    with pytest.raises(DataError, match="vector 100 holds NaN or infinity"):
        measure(bad)
    bad[100, 2] = math.inf
    with pytest.raises(DataError, match="vector 100 holds NaN or infinity"):
        measure(bad)
    with pytest.raises(ShapeError, match=r"\[N, E\], got shape \(3,\)"):
        measure([1.0, 2.0, 3.0])
    with pytest.raises(DataError, match=r"at least [12] vectors, got 0"):
        measure(np.empty((0, 3)))
    with pytest.raises(ShapeError, match="expected numbers, in rows of equal length"):
        measure([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize("measure", [uniformity, mean_cosine])
def test_a_zero_vector_has_no_direction(measure):
    with pytest.raises(DataError, match="vector 1 is zero; leave out its text"):
        measure([[1.0, 0], [0, 0], [0, 1]])


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_lengths_beyond_the_range_of_float32_squares_do_no_harm(scale):
    vectors = (CONE * scale).astype(np.float32)
    assert mean_cosine(vectors) == pytest.approx(mean_cosine(CONE), rel=1e-5)
    assert uniformity(vectors) == pytest.approx(uniformity(CONE), rel=1e-5)


def test_errors_name_what_came():
    with pytest.raises(DataError, match="expected at least 2 vectors, got 1"):
        uniformity([[1.0, 2.0]])
    with pytest.raises(ShapeError, match="expected vectors of at least 2 dimensions, got 1"):
        isoscore([[1.0], [2.0]])
    equal = np.full((20, 3), 0.1)
    for measure in (isoscore, lambda x: effective_rank(x, center=True)):
        with pytest.raises(DataError, match="all 20 vectors are equal"):
            measure(equal)
    with pytest.raises(DataError, match="all vectors are 0"):
        effective_rank(np.zeros((3, 2)))
    with pytest.raises(ShapeError, match="150 vectors, 2 clusters"):
        cluster_isotropy(CONE, [0, 1])
    with pytest.raises(DataError, match="none of 2 clusters has two different vectors"):
        cluster_isotropy([[1.0, 2], [3, 4]], [0, 1])
    with pytest.raises(SettingsError, match="t must be above 0 and finite, got -2"):
        uniformity(CONE, t=-2)
    with pytest.raises(SettingsError, match="alpha must be above 0"):
        alignment(CONE, CONE, alpha=0)
    with pytest.raises(ShapeError, match=r"\(150, 6\) and \(149, 6\), expected equal"):
        alignment(CONE, CONE[1:])
