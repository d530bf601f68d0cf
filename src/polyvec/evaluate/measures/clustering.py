"""Agreement of clusters with gold classes, whatever the clusters are called.

One label of any type per item: predicted clusters first, then gold classes.
"""

import numpy as np

from polyvec.errors import SettingsError, known
from polyvec.evaluate.measures.inputs import Labels, classes, extra, paired

AVERAGES = ("arithmetic", "geometric", "min", "max")


def v_measure(predicted: Labels, gold: Labels) -> float:
    """Harmonic mean of homogeneity and completeness, 0 to 1; MTEB's score of a clustering.

    Rosenberg and Hirschberg 2007, aclanthology.org/D07-1043.

    >>> round(v_measure([0, 0, 1, 2], ["a", "a", "b", "b"]), 4)
    0.8
    """
    found = _codes("v_measure", predicted, gold)
    return float(extra("sklearn.metrics", "V-measure").v_measure_score(found[1], found[0]))


def nmi(predicted: Labels, gold: Labels, *, average: str = "arithmetic") -> float:
    """Normalised mutual information, 0 to 1: mutual information over the mean of the entropies.

    Papers differ in the mean: "arithmetic" (equals V-measure), "geometric", "min", "max". Strehl
    and Ghosh 2002.

    >>> round(nmi([0, 0, 1, 2], ["a", "a", "b", "b"]), 4)
    0.8
    """
    if average not in AVERAGES:
        raise SettingsError(f"nmi: average {average!r} is not known." + known(average, AVERAGES))
    found = _codes("nmi", predicted, gold)
    score = extra("sklearn.metrics", "NMI").normalized_mutual_info_score
    return float(score(found[1], found[0], average_method=average))


def ari(predicted: Labels, gold: Labels) -> float:
    """Adjusted Rand index, -0.5 to 1: agreement on pairs of items; 0 is expected by chance.

    Hubert and Arabie 1985.

    >>> round(ari([0, 0, 1, 2], ["a", "a", "b", "b"]), 4)
    0.5714
    """
    found = _codes("ari", predicted, gold)
    return float(extra("sklearn.metrics", "ARI").adjusted_rand_score(found[1], found[0]))


def clustering_accuracy(predicted: Labels, gold: Labels) -> float:
    """Share of items in the cluster matched to their class, one to one, 0 to 1.

    The Hungarian method (Kuhn 1955) finds the matching with the largest share; items in clusters
    beyond the number of classes count as wrong.

    >>> clustering_accuracy([0, 0, 1, 2], ["a", "a", "b", "b"])
    0.75
    """
    counts_KC = _counts("clustering_accuracy", predicted, gold)
    match = extra("scipy.optimize", "clustering accuracy").linear_sum_assignment
    return float(counts_KC[match(counts_KC, maximize=True)].sum() / counts_KC.sum())


def purity(predicted: Labels, gold: Labels) -> float:
    """Share of items of their cluster's most frequent class, 0 to 1.

    1 if each item is a cluster of its own: compare only equal numbers of clusters.

    >>> purity([0, 0, 1, 2], ["a", "a", "b", "b"])
    1.0
    """
    counts_KC = _counts("purity", predicted, gold)
    return float(counts_KC.max(axis=1).sum() / counts_KC.sum())


def _codes(what: str, predicted: Labels, gold: Labels) -> list[np.ndarray]:
    """Both labellings as integers in order of first occurrence, both [N]."""
    paired(what, predicted, gold, of="labels")
    # Integers, because scikit-learn refuses labels of mixed types or compares them as
    # strings. It takes gold labels first.
    found = []
    for labels in (classes(what, predicted), classes(what, gold)):
        code = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        found.append(np.array([code[label] for label in labels]))
    return found


def _counts(what: str, predicted: Labels, gold: Labels) -> np.ndarray:
    """Number of items of each class in each cluster, [K, C]."""
    clusters, gold_classes = _codes(what, predicted, gold)
    counts_KC = np.zeros((clusters.max() + 1, gold_classes.max() + 1), int)
    np.add.at(counts_KC, (clusters, gold_classes), 1)
    return counts_KC
