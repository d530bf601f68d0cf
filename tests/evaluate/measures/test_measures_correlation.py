"""Correlations: values by hand, ties, and agreement with numpy, scipy and plain Python."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from polyvec.errors import DataError, ShapeError
from polyvec.evaluate.measures import correlations, pearson, spearman


def test_correlations_by_hand():
    # Ranks 1 2 3 4 against 1 2 4 3: Spearman 1 - 6 * 2 / (4 * 15) = 0.8.
    found = correlations([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 400.0, 30.0])
    assert found["spearman"] == pytest.approx(0.8)
    # Pearson of 1 2 3 and 1 2 6: covariance 5/2, deviations 1 and sqrt(7).
    assert correlations([1, 2, 3], [1, 2, 6])["pearson"] == pytest.approx(2.5 / math.sqrt(7))
    assert correlations([1, 2, 3], [6, 4, 2]) == pytest.approx({"spearman": -1, "pearson": -1})


def test_equal_scores_share_their_average_rank():
    # Ranks 1.5 1.5 3 against 1 2 3: covariance 1.5/2, deviations sqrt(0.75) and 1.
    found = correlations([5, 5, 9], [1, 2, 3])["spearman"]
    assert found == pytest.approx(0.75 / math.sqrt(0.75))


@pytest.mark.parametrize(
    ("predicted", "gold", "message"),
    [
        ([1, 1, 1], [1, 2, 3], "all 3 predicted scores are equal"),
        ([1, 2, 3], [4, 4, 4], "all 3 gold scores are equal"),
        ([1], [2], "all 1 predicted scores are equal"),
        ([], [], "all 0 predicted scores are equal"),
        ([1, 2, math.nan], [1, 2, 3], "predicted scores hold NaN or infinity"),
        ([1, 2, 3], [1, math.inf, 3], "gold scores hold NaN or infinity"),
    ],
)
def test_a_correlation_that_is_undefined_is_an_error(predicted, gold, message):
    with pytest.raises(DataError, match=message):
        correlations(predicted, gold)


def test_a_correlation_needs_pairs():
    with pytest.raises(ShapeError, match="2 predicted scores, 3 gold"):
        correlations([1, 2], [1, 2, 3])


def test_correlations_agree_with_plain_python():
    draw = random.Random(4)
    a = [draw.choice([0.1, 0.2, 0.3, 0.4]) for _ in range(200)]
    b = [x + draw.gauss(0, 0.2) for x in a]

    def ranks(values):
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    def pearson(x, y):
        mx, my = sum(x) / len(x), sum(y) / len(y)
        covariance = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
        return covariance / math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))

    expected = {"spearman": pearson(ranks(a), ranks(b)), "pearson": pearson(a, b)}
    assert correlations(a, b) == pytest.approx(expected, abs=1e-9)


def tied(seed, num=300):
    draw = np.random.default_rng(seed)
    predicted = draw.integers(0, 6, num) / 2
    return predicted, predicted + draw.integers(-2, 3, num)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_numpy_and_scipy(seed):
    predicted, gold = tied(seed)
    assert pearson(predicted, gold) == pytest.approx(np.corrcoef(predicted, gold)[0, 1])
    ranks = [stats.rankdata(values, "average") for values in (predicted, gold)]
    assert spearman(predicted, gold) == pytest.approx(np.corrcoef(*ranks)[0, 1])


def squared_differences(predicted, gold, method):
    """The survey's Eq. 3, which divides by n (n^2 - 1)."""
    n, apart = len(gold), stats.rankdata(predicted, method) - stats.rankdata(gold, method)
    return 1 - 6 * (apart**2).sum() / (n * (n**2 - 1))


def test_the_short_form_of_spearman_holds_without_ties_only():
    draw = np.random.default_rng(0)
    a, b = draw.permutation(50), draw.permutation(50)
    assert spearman(a, b) == pytest.approx(squared_differences(a, b, "average"))
    predicted, gold = tied(0)
    for method in ("average", "min", "ordinal"):
        short = squared_differences(predicted, gold, method)
        assert abs(spearman(predicted, gold) - short) > 1e-3


def test_what_leaves_a_correlation_unchanged():
    predicted, gold = tied(1)
    assert pearson(3 * predicted - 7, gold) == pytest.approx(pearson(predicted, gold))
    assert pearson(predicted**3, gold) != pytest.approx(pearson(predicted, gold))
    assert spearman(np.exp(predicted), gold) == pytest.approx(spearman(predicted, gold))
    assert spearman(-predicted, gold) == pytest.approx(-spearman(predicted, gold))


@pytest.mark.parametrize("measure", [pearson, spearman])
def test_one_number_an_item(measure):
    with pytest.raises(
        ShapeError, match=r"predicted scores: expected one number per item, .* \(2, 1\)"
    ):
        measure([[1.0], [2.0]], [1.0, 2.0])
    with pytest.raises(ShapeError, match="predicted scores: expected numbers"):
        measure(["one", "two"], [1.0, 2.0])
    with pytest.raises(DataError, match="gold scores hold NaN or infinity: nan at index 1"):
        measure([1.0, 2.0], [1.0, math.nan])
