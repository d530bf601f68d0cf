"""The bootstrap behind the bars: its numbers, and where it keeps quiet."""

import numpy as np
import pytest
from report_examples import mean

from polyvec.evaluate.report.intervals import bootstrap, counts_of, interval, resampling, score
from polyvec.evaluate.significance import spearman


def tied_pairs(num: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    gold = draw.integers(0, 6, num).astype(float)
    return np.stack([(gold + draw.standard_normal(num)).round(1), gold], axis=1)


@pytest.mark.parametrize("statistic", [mean, spearman])
def test_arrays_give_what_the_statistic_gives_draw_by_draw(statistic):
    """Each sample's score by its counts is scipy's or numpy's of the rows drawn."""
    items = tied_pairs(50)
    counts_SN = counts_of(np.random.default_rng(3), 50, 20)
    assert (counts_SN.sum(axis=1) == 50).all() and counts_SN.min() == 0
    found_S = resampling(items, statistic)(counts_SN)
    rows_S = [np.repeat(items, counts.astype(int), axis=0) for counts in counts_SN]
    assert found_S == pytest.approx([statistic(rows) for rows in rows_S], abs=1e-12)


def test_the_interval_of_a_mean_is_the_textbooks():
    items = np.random.default_rng(1).random((400, 1))
    low, high = interval(bootstrap(items, mean))
    half = 1.96 * items.std(ddof=1) / 20
    assert high - low == pytest.approx(2 * half, rel=0.15)
    assert (low + high) / 2 == pytest.approx(items.mean(), abs=0.15 * half)


def test_another_statistic_is_called_for_each_sample():
    items = np.random.default_rng(2).random((101, 1))
    assert resampling(items, lambda rows: float(np.median(rows[:, 0]))) is None
    sampled = bootstrap(items, lambda rows: float(np.median(rows[:, 0])), num_samples=30)
    assert len(sampled) == 30 and np.isin(sampled, items).all()


def test_a_statistic_that_some_draws_do_not_have_is_not_a_number_there():
    def picky(rows):
        if rows[:, 0].max() < 0.9:
            raise ValueError("no positives")
        return float(np.median(rows[:, 0]))

    items = np.linspace(0, 0.91, 12)[:, None]
    assert np.isnan(score(picky, items[:5]))
    sampled = bootstrap(items, picky, num_samples=100)
    assert 0 < np.isnan(sampled).sum() < 100
    assert interval(sampled) is None


def test_too_few_and_too_many_items_have_no_interval():
    for num in (1, 9, 20_001):
        assert bootstrap(np.zeros((num, 1)), mean) is None
    assert bootstrap(np.zeros((10, 1)), mean) is not None
    assert interval(None) is None


@pytest.mark.equality
def test_many_items_have_fewer_samples_and_a_seed_repeats():
    items = np.random.default_rng(4).random((20_000, 1))
    sampled = bootstrap(items, mean, seed=5)
    assert len(sampled) == 200
    assert np.array_equal(sampled, bootstrap(items, mean, seed=5))
    assert not np.array_equal(sampled, bootstrap(items, mean, seed=6))


def test_equal_gold_scores_have_no_correlation_and_no_interval():
    items = np.stack([np.arange(20.0), np.ones(20)], axis=1)
    assert interval(bootstrap(items, spearman, num_samples=10)) is None
