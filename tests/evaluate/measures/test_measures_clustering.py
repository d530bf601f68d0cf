"""Clusters against classes: values by hand, all permutations, and agreement with scikit-learn."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn import metrics

from polyvec.errors import DataError, SettingsError, ShapeError
from polyvec.evaluate.measures import ari, clustering_accuracy, nmi, purity, v_measure

ALL = [v_measure, nmi, ari, clustering_accuracy, purity]


def drawn(seed, num=200, clusters=5, groups=4):
    draw = np.random.default_rng(seed)
    gold = draw.integers(0, groups, num)
    predicted = np.where(
        draw.random(num) < 0.6, (gold + 1) % clusters, draw.integers(0, clusters, num)
    )
    return predicted, gold


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(seed):
    predicted, gold = drawn(seed)
    assert v_measure(predicted, gold) == pytest.approx(metrics.v_measure_score(gold, predicted))
    for average in ("arithmetic", "geometric", "min", "max"):
        expected = metrics.normalized_mutual_info_score(gold, predicted, average_method=average)
        assert nmi(predicted, gold, average=average) == pytest.approx(expected)
    assert ari(predicted, gold) == pytest.approx(metrics.adjusted_rand_score(gold, predicted))


def entropy(labels):
    shares = [count / len(labels) for count in Counter(labels).values()]
    return -sum(share * math.log(share) for share in shares)


def test_agrees_with_the_definitions():
    predicted, gold = (labels.tolist() for labels in drawn(3, num=60))
    both = list(zip(predicted, gold, strict=True))
    shared = entropy(predicted) + entropy(gold) - entropy(both)
    homogeneity, completeness = shared / entropy(gold), shared / entropy(predicted)
    expected = 2 * homogeneity * completeness / (homogeneity + completeness)
    assert v_measure(predicted, gold) == pytest.approx(expected)
    assert nmi(predicted, gold) == pytest.approx(2 * shared / (entropy(predicted) + entropy(gold)))
    # Rand index over pairs of items, less what chance gives.
    pairs = list(itertools.combinations(both, 2))
    together = np.array([(a[0] == b[0], a[1] == b[1]) for a, b in pairs])
    (in_cluster, in_class), in_both = together.mean(axis=0), together.all(axis=1).mean()
    chance = in_cluster * in_class
    expected = (in_both - chance) / ((in_cluster + in_class) / 2 - chance)
    assert ari(predicted, gold) == pytest.approx(expected)


@pytest.mark.parametrize(("clusters", "groups"), [(3, 5), (4, 4), (5, 3)])
def test_accuracy_is_that_of_the_best_of_all_matchings(clusters, groups):
    predicted, gold = drawn(4, 60, clusters, groups)
    names = [*range(groups)] + [None] * clusters  # None: a cluster that is no class's
    best = max(
        np.mean(
            [matching[cluster] == label for cluster, label in zip(predicted, gold, strict=True)]
        )
        for matching in set(itertools.permutations(names, clusters))
    )
    assert clustering_accuracy(predicted, gold) == pytest.approx(best)


def test_purity_by_hand_and_by_counting():
    gold = list("aaabbc")
    assert purity([0, 0, 0, 0, 1, 1], gold) == pytest.approx((3 + 1) / 6)
    assert clustering_accuracy([0, 0, 0, 0, 1, 1], gold) == pytest.approx((3 + 1) / 6)
    assert purity(range(6), gold) == 1
    assert clustering_accuracy(range(6), gold) == pytest.approx(3 / 6)
    predicted, gold = drawn(5)
    most = [Counter(gold[predicted == c].tolist()).most_common(1)[0][1] for c in set(predicted)]
    assert purity(predicted, gold) == pytest.approx(sum(most) / len(gold))


@pytest.mark.parametrize("measure", ALL)
def test_names_of_clusters_do_not_matter(measure):
    predicted, gold = drawn(6)
    renamed = [f"cluster {(label * 3 + 1) % 5}" for label in predicted]
    assert measure(renamed, gold) == pytest.approx(measure(predicted, gold))
    assert measure([None if label == 2 else label for label in gold], gold) == pytest.approx(1)
    tensors = torch.from_numpy(predicted), torch.from_numpy(gold)
    assert measure(*tensors) == pytest.approx(measure(predicted, gold))


@pytest.mark.parametrize("measure", ALL)
def test_one_cluster_for_all_says_nothing(measure):
    gold = list("aabb")
    expected = 0.5 if measure in (clustering_accuracy, purity) else 0
    assert measure([7] * 4, gold) == pytest.approx(expected)
    assert measure([7], ["a"]) == measure([7, 7], ["a", "a"]) == 1


@pytest.mark.parametrize("measure", ALL)
def test_bad_labels_are_errors(measure):
    with pytest.raises(ShapeError, match="2 predicted labels, 1 gold"):
        measure([0, 1], ["a"])
    with pytest.raises(DataError, match="no labels, expected at least one"):
        measure([], [])
    with pytest.raises(DataError, match="label 1 is NaN"):
        measure([0, 1], [0.0, math.nan])
    with pytest.raises(ShapeError, match=r"expected one label per item, got \[1, 2\] at index 0"):
        measure(np.array([[1, 2]]), ["a"])
    with pytest.raises(DataError, match="gold is a string, expected a list of labels"):
        measure([0, 1], "ab")


def test_an_unknown_mean_is_an_error():
    with pytest.raises(
        SettingsError, match=r"'geometrical' is not known. Did you mean 'geometric'"
    ):
        nmi([0], [0], average="geometrical")
