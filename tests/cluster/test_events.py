"""Dated texts: peaks, groups within them, and one event that was told in two halves."""

import numpy as np
import pytest
from clusters_by_hand import Oracle, planted
from sklearn.metrics import adjusted_rand_score

from polyvec.cluster.clusterer import TextClusterer
from polyvec.cluster.events import peaks
from polyvec.errors import SettingsError, ShapeError


def test_peaks_are_days_on_which_more_was_written():
    days = np.array([0] * 5 + [1] * 2 + [2, 8] + [9] * 6 + [10] * 6 + [20.5] * 3)
    assert peaks(days, 1).tolist() == [0.0, 9.0, 20.0]
    assert peaks(np.array([3.2]), 3).tolist() == [3.0]


def test_two_halves_of_an_event_are_merged_and_others_kept():
    """Each planted group is an event of one week; the first is told on two days."""
    texts, vectors, gold = planted(spread=0.1)
    days = np.array([float(10 * group) for group in gold])
    days[:6] += 4
    method = {"kind": "peaks", "window": 1, "distance": 0.9}
    halves = TextClusterer(method=method).fit(texts, vectors=vectors, days=days)
    assert len(halves.names) == 5
    merge = {"kind": "merge", "threshold": 0.3, "max_days": 7.0}
    clusterer = TextClusterer(
        method=method, feedback=[merge], language_model=Oracle().model(), name=False
    )
    found = clusterer.fit(texts, vectors=vectors, days=days)
    assert adjusted_rand_score(gold, found.labels) == 1.0


def test_groups_far_apart_in_time_are_not_asked_about():
    texts, vectors, gold = planted(spread=0.1)
    days = np.array([float(100 * (number % 2)) for number in range(len(gold))])
    method = {"kind": "peaks", "window": 1, "distance": 0.9}
    merge = {"kind": "merge", "threshold": 0.3, "max_days": 7.0}
    clusterer = TextClusterer(
        method=method, feedback=[merge], language_model=Oracle().model(), name=False
    )
    found = clusterer.fit(texts, vectors=vectors, days=days)
    assert len(found.names) == 8 and not found.calls


def test_dates_are_checked():
    texts, vectors, _ = planted()
    with pytest.raises(ShapeError, match="expected 48 finite numbers"):
        TextClusterer(method="peaks").fit(texts, vectors=vectors, days=[1.0])
    with pytest.raises(SettingsError, match="so k 3 has no effect"):
        TextClusterer(method="peaks", k=3).fit(texts, vectors=vectors, days=[1.0] * 48)
