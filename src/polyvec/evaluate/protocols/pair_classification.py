"""Pair classification: does similarity separate matching pairs from the others?"""

import numpy as np

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import PairClassificationSet
from polyvec.errors import DataError
from polyvec.evaluate.measures.classification import average_precision, best_accuracy, best_f1
from polyvec.evaluate.outcome import Encoder, Item, Outcome
from polyvec.evaluate.protocols.vectors import encode_pairs, equal_lengths, pair_similarities

MEASURES = ("accuracy", "f1", "precision", "recall", "ap")


def pair_classification(encoder: Encoder, data: PairClassificationSet) -> Outcome:
    """Average precision of the pairs ranked by similarity, and scores at the best thresholds.

    By the model's own similarity ("similarity_ap"), cosine, Manhattan and Euclidean distance and
    dot product, and the best of the five: "max_ap", MTEB's main score. Accuracy and F1 are at
    their best threshold, precision and recall at that of F1. `paired` holds ranks instead of
    similarities, from 0 to 1, by the function that gave max_ap: average precision is the same, and
    the permutation test can swap the values of two models, whose similarities differ in scale.
    """
    equal_lengths(data.name, pairs=data.sentences1, sentences2=data.sentences2, labels=data.labels)
    if set(data.labels) != {0, 1}:
        shown = ", ".join(map(repr, sorted(set(data.labels))[:5]))
        raise DataError(f"{data.name}: labels are {shown}; expected both 0 and 1")
    a_NE, b_NE = encode_pairs(encoder, data.sentences1, data.sentences2, data.name)
    similarities = pair_similarities(encoder, a_NE, b_NE, data.name)
    labels_N = np.asarray(data.labels)
    each = {
        name: _scores(values, labels_N)
        for name, values in similarities.items()
        if np.ptp(values) > 0  # equal ones have no threshold
    }
    scores = {f"{name}_{key}": value for name in each for key, value in each[name].items()}
    scores |= {f"max_{key}": max(found[key] for found in each.values()) for key in MEASURES}
    best = max(each, key=lambda name: each[name]["ap"])
    own_N = similarities["similarity"]
    rows = enumerate(
        zip(data.sentences1, data.sentences2, own_N.tolist(), data.labels, strict=True)
    )
    kind = KINDS[data.kind]
    return Outcome(
        kind.name,
        kind.main_measure,
        scores,
        tuple(Item(str(row), (a, b), value, label) for row, (a, b, value, label) in rows),
        np.stack([_ranks(similarities[best]), labels_N], axis=1),
        _ap,
        {"label 1": own_N[labels_N == 1], "label 0": own_N[labels_N == 0]},
    )


def _scores(similarities_N: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    f1 = best_f1(similarities_N, labels_N)
    found = best_accuracy(similarities_N, labels_N).value, f1.value, f1.precision, f1.recall
    return dict(zip(MEASURES, (*found, average_precision(similarities_N, labels_N)), strict=True))


def _ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 0 to 1; equal values have equal ranks."""
    _, place_N = np.unique(values_N, return_inverse=True)
    ranks_N: np.ndarray = place_N / max(place_N.max(), 1)
    return ranks_N


def _ap(items: np.ndarray) -> float:
    """Average precision of [rank, label]; NaN if a bootstrap sample lacks one of the labels."""
    if np.ptp(items[:, 1]) == 0:
        return float("nan")
    return average_precision(items[:, 0], items[:, 1])
