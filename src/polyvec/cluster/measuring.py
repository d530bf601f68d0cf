"""How good groups are: beside gold labels, by their vectors, and over seeds."""

from collections.abc import Hashable, Sequence

import numpy as np

from polyvec.cluster.choosing import silhouette
from polyvec.cluster.grouping import Grouping
from polyvec.evaluate.measures.clustering import ari, clustering_accuracy, nmi, v_measure

NUM_SEEDS = 3


def agreement(labels_N: np.ndarray, gold: Sequence[Hashable]) -> dict[str, float]:
    """Accuracy by the best assignment, NMI, ARI and V-measure, 0 to 1 (ARI from -0.5).

    Texts in no group count as groups of their own.
    """
    alone = labels_N < 0
    own = np.where(alone, labels_N.max(initial=0) + 1 + np.arange(len(labels_N)), labels_N)
    names = {"accuracy": clustering_accuracy, "nmi": nmi, "ari": ari, "v_measure": v_measure}
    return {name: float(measure(own, gold)) for name, measure in names.items()}


def inner(grouping: Grouping) -> dict[str, float]:
    """Silhouette, and the mean ARI between the groups that the algorithm finds from other seeds."""
    runs = [
        grouping.algorithm(grouping.vectors_NE, grouping.seed + number)
        for number in range(NUM_SEEDS)
    ]
    pairs = [ari(a, b) for i, a in enumerate(runs) for b in runs[i + 1 :]]
    return {
        "silhouette": silhouette(grouping.vectors_NE, grouping.labels_N, grouping.seed),
        "stability": float(np.mean(pairs)),
    }
