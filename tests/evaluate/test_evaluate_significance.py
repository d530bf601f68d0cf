"""Significant differences, differences due to chance, and the tests themselves."""

import numpy as np
import pytest

from polyvec.errors import DataError, InputError, ShapeError
from polyvec.evaluate.significance import compare, spearman


def test_a_large_difference_is_significant_and_none_is_not():
    draw = np.random.default_rng(0)
    a = draw.random(200)
    better = compare(a, a + 0.1 + 0.05 * draw.standard_normal(200))
    assert better.significant and better.low > 0.05 and better.p_value < 0.01
    assert better.difference == pytest.approx(0.1, abs=0.02)
    noise = compare(a, a + 0.05 * draw.standard_normal(200))
    assert noise.low < 0 < noise.high or noise.p_value > 0.01
    same = compare(a, a)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert not same.significant


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["first", "second"])
def test_an_item_without_a_value_is_named(side, value):
    good, bad = np.arange(10.0), np.arange(10.0)
    bad[7] = value
    with pytest.raises(DataError, match=f"item 7 of the {side} model is NaN or infinite .1 of 10"):
        compare(*((bad, good) if side == "first" else (good, bad)))


def test_the_interval_is_the_textbooks_for_a_mean():
    """Mean of paired differences: the normal interval, to a few percent."""
    draw = np.random.default_rng(1)
    a, b = draw.random(400), draw.random(400)
    found = compare(a, b, num_samples=4000)
    half = 1.96 * (b - a).std(ddof=1) / 20
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)
    assert (found.high + found.low) / 2 == pytest.approx((b - a).mean(), abs=0.1 * half)


def test_false_alarms_come_at_the_rate_that_is_said():
    """Two models that differ by chance alone: about 5 in 100 are below 0.05."""
    draw = np.random.default_rng(2)
    alarms = 0
    for trial in range(100):
        a, b = draw.random(40), draw.random(40)
        alarms += compare(a, b, num_samples=99, seed=trial).p_value <= 0.05
    assert alarms <= 12


def test_spearman_items_keep_their_gold():
    draw = np.random.default_rng(3)
    gold = draw.random(300)
    good = np.stack([gold + 0.1 * draw.standard_normal(300), gold], axis=1)
    poor = np.stack([draw.random(300), gold], axis=1)
    found = compare(poor, good, spearman, num_samples=200)
    assert found.significant and found.b > 0.9 and abs(found.a) < 0.2
    back = compare(good, poor, spearman, num_samples=200)
    assert back.difference == pytest.approx(-found.difference)


def test_a_seed_repeats():
    draw = np.random.default_rng(4)
    a, b = draw.random(30), draw.random(30)
    assert compare(a, b, seed=7) == compare(a, b, seed=7) != compare(a, b, seed=8)


def test_what_is_not_paired_is_refused():
    with pytest.raises(ShapeError, match="expected equal shapes"):
        compare(np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match="1 items"):
        compare(np.zeros(1), np.zeros(1))


def test_a_permutation_of_few_items_is_exact():
    """All 8 swaps of 3 items: only two of them give a mean difference as large."""
    found = compare(np.zeros(3), np.array([1.0, 2.0, 4.0]))
    assert (found.difference, found.p_value) == (pytest.approx(7 / 3), 2 / 8)


@pytest.mark.filterwarnings("error:The BCa")
def test_samples_without_a_score_are_left_out_of_the_interval():
    """With two gold scores, some samples have only one: no correlation."""
    gold = np.array([0.0, 0, 0, 0, 1])
    draw = np.random.default_rng(6)
    a, b = (np.stack([draw.random(5), gold], axis=1) for _ in range(2))
    found = compare(a, b, spearman, num_samples=200)
    assert np.isfinite([found.low, found.high]).all() and found.low <= found.high
