"""Which candidates are refused and taken: values by hand, and the shape of what is drawn."""

from collections import Counter

import numpy as np
import pytest

from polyvec.errors import SettingsError
from polyvec.train.mining.rules import refused, taken
from polyvec.train.mining.settings import mining_settings

SCORES = np.array([0.9, 0.8, 0.7, 0.5, -0.2], np.float32)


def left(positive: float = 0.8, **settings) -> tuple[list[float], dict[str, int]]:
    skipped: Counter[str] = Counter()
    found = refused(SCORES, positive, mining_settings(settings), skipped)
    return np.round(found[np.isfinite(found)].astype(float), 6).tolist(), dict(skipped)


def test_each_limit_refuses_what_it_says():
    assert left(relative_margin=0.05) == ([0.7, 0.5, -0.2], {"relative_margin": 2})
    assert left(absolute_margin=0.2) == ([0.5, -0.2], {"absolute_margin": 3})
    assert left(max_score=0.75) == ([0.7, 0.5, -0.2], {"max_score": 2})
    assert left(min_score=0.6) == ([0.9, 0.8, 0.7], {"min_score": 2})


def test_a_margin_below_a_negative_score_is_lower():
    """-0.15 less 50 % of its size is -0.225; times 0.5 it would be -0.075."""
    found, _ = left(positive=-0.15, relative_margin=0.5)
    assert found == []


def test_a_refused_candidate_is_counted_once():
    _, skipped = left(absolute_margin=0.2, max_score=0.75, min_score=0.0)
    assert skipped == {"absolute_margin": 3, "max_score": 0, "min_score": 1}


def chosen(seed: int = 0, scores=SCORES, **settings) -> list[int]:
    found = mining_settings(settings)
    width = found.width(0)
    return taken(scores, 0.8, found, width, np.random.default_rng(seed)).tolist()


def test_the_window_counts_what_is_left():
    assert chosen(num_negatives=2) == [0, 1]
    assert chosen(num_negatives=2, range_min=1) == [1, 2]
    scores = np.where(np.arange(5) == 1, -np.inf, SCORES)
    assert chosen(scores=scores, num_negatives=2, range_min=1, range_max=3) == [2, 3]
    assert chosen(scores=scores, num_negatives=2, range_min=3, range_max=5) == [4]


def test_random_choices_come_from_the_window():
    draws = [
        tuple(chosen(seed, num_negatives=2, range_min=1, range_max=4, sampling_strategy="random"))
        for seed in range(300)
    ]
    assert set(draws) == {(1, 2), (1, 3), (2, 3)}
    counts = np.array(list(Counter(draws).values()))
    assert counts.min() > 70  # 100 expected; 4 standard deviations are 33


def test_simans_draws_by_its_density():
    """One draw of each: shares are exp(-a (s - 0.8 - b)^2), normalised."""
    a, b = 20.0, -0.1
    settings = {"sampling_strategy": "simans", "simans_a": a, "simans_b": b}
    draws = [chosen(seed, num_negatives=1, range_max=5, **settings)[0] for seed in range(4000)]
    density = np.exp(-a * (SCORES.astype(float) - 0.8 - b) ** 2)
    expected = 4000 * density / density.sum()
    counts = np.bincount(draws, minlength=5)
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected) + 1)
    assert counts.argmax() == 2  # 0.7 is at the peak


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"num_negatives": 0}, "num_negatives"),
        ({"range_min": 5, "range_max": 6}, "fewer than num_negatives = 3"),
        ({"max_score": 0.1, "min_score": 0.2}, "above max_score"),
        ({"sampling_strategy": "simans"}, "simans_a"),
        ({"simans_b": 0.1}, "sampling_strategy = 'simans'"),
        ({"sampling_strategy": "best"}, "'top' or 'random' or 'simans'"),
        ({"cross_encoder": "x"}, "no effect without a limit"),
        ({"refresh_epochs": 1, "model": "x"}, "refresh_epochs"),
        ({"relative_margn": 0.05}, "Did you mean 'relative_margin'"),
        ({"absolute_margin": -1.0}, "at least 0"),
    ],
)
def test_settings_that_cannot_work(table, words):
    with pytest.raises(SettingsError, match=words.replace("(", r"\(")):
        mining_settings(table)
