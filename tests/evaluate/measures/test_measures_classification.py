"""Classes told apart: values by hand, every threshold, and agreement with mteb and scikit-learn."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics

from polyvec.errors import DataError, SettingsError, ShapeError
from polyvec.evaluate.measures import (
    accuracy,
    average_precision,
    best_accuracy,
    best_f1,
    f1,
    pair_classification,
)


def drawn(seed, num=60, ties=True):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, num)
    scores = labels * 0.5 + draw.standard_normal(num)
    return (np.round(scores * 2) / 2 if ties else scores), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_threshold_is_the_best_of_all(seed, ties):
    scores, labels = drawn(seed, ties=ties)
    values = sorted(set(scores.tolist()))
    cuts = [(low + high) / 2 for low, high in pairwise(values)]
    found = best_accuracy(scores, labels)
    assert found.value == pytest.approx(max(np.mean((scores > cut) == labels) for cut in cuts))
    assert found.value == pytest.approx(np.mean((scores > found.threshold) == labels))
    found = best_f1(scores, labels)
    assert found.value == pytest.approx(max(metrics.f1_score(labels, scores > cut) for cut in cuts))
    called = scores > found.threshold
    assert found.value == pytest.approx(metrics.f1_score(labels, called))
    assert found.precision == pytest.approx(metrics.precision_score(labels, called))
    assert found.recall == pytest.approx(metrics.recall_score(labels, called))


def test_values_by_hand():
    scores, labels = [0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0]
    assert average_precision(scores, labels) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert best_accuracy(scores, labels) == pytest.approx((0.75, 0.85, 1, 0.5))
    assert best_f1(scores, labels) == pytest.approx((0.8, 0.4, 2 / 3, 1))
    assert best_f1([1, 2, 3, 4], [0, 0, 1, 1]) == (1, 2.5, 1, 1)
    assert best_f1([4, 3, 2, 1], [0, 0, 0, 1]) == (0, 3.5, 0, 0)  # no threshold finds it


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_equal_scores_does_not_matter(order):
    scores, labels = [2, 1, 1, 1, 0][::order], [1, 0, 1, 0, 0][::order]
    # As one step of three with one right: 1/2 * 1 + 1/2 * 2/4.
    assert average_precision(scores, labels) == pytest.approx(0.75)
    assert best_accuracy(scores, labels) == pytest.approx((0.8, 1.5, 1, 0.5))
    assert best_f1(scores, labels) == pytest.approx((2 / 3, 1.5, 1, 0.5))


def test_scores_that_are_all_equal_have_no_threshold():
    assert average_precision([1, 1, 1, 1], [1, 0, 0, 0]) == 0.25
    for measure in (best_accuracy, best_f1):
        with pytest.raises(
            DataError, match="all 3 scores are equal, so no threshold separates them"
        ):
            measure([0.5, 0.5, 0.5], [0, 1, 1])


@pytest.mark.parametrize("ties", [False, True])
def test_pair_classification_agrees_with_mteb(ties):
    module = pytest.importorskip("mteb.abstasks.pair_classification")
    mteb = module.AbsTaskPairClassification
    draw = np.random.default_rng(1)
    a, b = draw.standard_normal((2, 80, 4))
    labels = draw.integers(0, 2, 80)
    b[labels == 1] += 0.7 * a[labels == 1]
    if ties:
        a, b = np.sign(a), np.sign(b)  # of length 2: all is exact
    distances = {
        "cosine_scores": 1 - metrics.pairwise.paired_cosine_distances(a, b),
        "manhattan_distances": metrics.pairwise.paired_manhattan_distances(a, b),
        "euclidean_distances": metrics.pairwise.paired_euclidean_distances(a, b),
        "dot_scores": np.array([x @ y for x, y in zip(a, b, strict=True)]),
    }
    distances["similarity_scores"] = distances["cosine_scores"]
    task = SimpleNamespace()
    for name in (
        "_compute_metrics_values",
        "_find_best_acc_and_threshold",
        "_find_best_f1_and_threshold",
    ):
        setattr(task, name, getattr(mteb, name).__get__(task))
    expected = mteb._compute_metrics(task, distances, labels.tolist())
    found = pair_classification(a, b, labels)
    compared = {key: value for key, value in expected.items() if "similarity" not in key}
    assert len(compared) == 5 * 5
    assert found == pytest.approx(compared)


def test_pair_classification_by_hand():
    a = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    b = [[9.0, 0.0], [5.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    found = pair_classification(a, b, [1, 1, 0, 0])
    assert found["cosine_ap"] == found["dot_accuracy"] == found["max_f1"] == 1
    # By distance, 8 and sqrt(17) of the positives are farther than sqrt(2) and 1.
    assert found["euclidean_ap"] == found["manhattan_ap"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert len(found) == 5 * 5


def test_accuracy_and_f1_agree_with_scikit_learn():
    draw = np.random.default_rng(2)
    gold = draw.choice(["a", "b", "c"], 90, p=[0.7, 0.2, 0.1])
    predicted = np.where(draw.random(90) < 0.6, gold, draw.choice(["a", "b", "d"], 90))
    assert accuracy(predicted, gold) == pytest.approx(metrics.accuracy_score(gold, predicted))
    for average in ("macro", "micro", "weighted"):
        expected = metrics.f1_score(gold, predicted, average=average, zero_division=0)
        assert f1(predicted, gold, average=average) == pytest.approx(expected)
    assert f1(predicted, gold, average="micro") == pytest.approx(accuracy(predicted, gold))


def test_f1_by_hand():
    # F1 of a: 2/3 (P 1, R 1/2); of b: 2/3 (P 1/2, R 1); of c, only predicted: 0.
    predicted, gold = ["a", "b", "b", "c"], ["a", "a", "b", "b"]
    assert accuracy(predicted, gold) == 0.5
    assert f1(predicted, gold) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert f1(predicted, gold, average="weighted") == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert f1([True], [True]) == accuracy([3], [3]) == 1


SCORED = [average_precision, best_accuracy, best_f1]


@pytest.mark.parametrize("measure", SCORED)
def test_bad_scores_and_labels_are_errors(measure):
    with pytest.raises(DataError, match="scores hold NaN or infinity: nan at index 1"):
        measure([1, math.nan], [0, 1])
    with pytest.raises(ShapeError, match="2 scores, 3 labels"):
        measure([1, 2], [0, 1, 1])
    for labels, shown in (([1, 1], "1"), ([0, 0], "0"), ([-1, 1], "-1, 1"), ([], "none")):
        with pytest.raises(DataError, match=f"both at least once, got: {shown}$"):
            measure([0.1, 0.2][: len(labels)], labels)


@pytest.mark.parametrize("measure", [accuracy, f1])
def test_labels_that_are_not_paired_are_errors(measure):
    with pytest.raises(ShapeError, match="2 predicted labels, 1 gold"):
        measure([0, 1], [0])
    with pytest.raises(DataError, match="no labels, expected at least one"):
        measure([], [])
    with pytest.raises(DataError, match="label 0 is NaN"):
        measure([math.nan], [1])
    with pytest.raises(SettingsError, match=r"'makro' is not known. Did you mean 'macro'"):
        f1([0], [0], average="makro")


def test_pairs_of_vectors_must_fit():
    with pytest.raises(ShapeError, match=r"\(2, 2\) and \(1, 2\), expected equal"):
        pair_classification([[1.0, 0], [0, 1]], [[1.0, 0]], [0, 1])
    with pytest.raises(ShapeError, match="2 scores, 1 labels"):
        pair_classification([[1.0, 0], [0, 1]], [[1.0, 0], [0, 1]], [1])
