"""Pair classification: does similarity tell pairs that belong together from those that do not?"""

import numpy as np

from polyvec.data.tasks.sets import PairSet
from polyvec.errors import DataError
from polyvec.evaluate.measures.classification import average_precision, best_accuracy, best_f1
from polyvec.evaluate.outcome import Encoder, Item, Outcome
from polyvec.evaluate.protocols.vectors import encode_pairs, equal_lengths, pair_similarities

MEASURES = ("accuracy", "f1", "precision", "recall", "ap")


def pair_classification(encoder: Encoder, data: PairSet, *, seed: int = 42) -> Outcome:
    """Average precision of the pairs in the order of their similarity, and scores at thresholds.

    By the model's own similarity ("similarity_ap"), cosine, Manhattan and Euclidean distance and
    dot product, and the best of the five: "max_ap", MTEB's main score. Accuracy and F1 are those
    of their best threshold, precision and recall those of F1's. `paired` holds ranks instead of
    similarities, from 0 to 1 and by the function that gave max_ap: its statistic is the same, and
    two models' numbers can be mixed. Nothing is drawn, so `seed` changes nothing.
    """
    equal_lengths(data.name, pairs=data.sentences1, sentences2=data.sentences2, labels=data.labels)
    if set(data.labels) != {0, 1}:
        shown = ", ".join(map(repr, sorted(set(data.labels))[:5]))
        raise DataError(f"{data.name}: labels must be 0 and 1, both of them, but are: {shown}")
    a_NE, b_NE = encode_pairs(encoder, data.sentences1, data.sentences2, data.name)
    similarities = pair_similarities(encoder, a_NE, b_NE, data.name)
    labels_N = np.asarray(data.labels)
    each = {
        name: _scores(values, labels_N)
        for name, values in similarities.items()
        if np.ptp(values) > 0  # equal ones part nothing
    }
    scores = {f"{name}_{key}": value for name in each for key, value in each[name].items()}
    scores |= {f"max_{key}": max(found[key] for found in each.values()) for key in MEASURES}
    best = max(each, key=lambda name: each[name]["ap"])
    own_N = similarities["similarity"]
    rows = enumerate(
        zip(data.sentences1, data.sentences2, own_N.tolist(), data.labels, strict=True)
    )
    return Outcome(
        "pair_classification",
        "max_ap",
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
    """Ranks from 0 to 1, equal values at the same one."""
    _, place_N = np.unique(values_N, return_inverse=True)
    return place_N / max(place_N.max(), 1)


def _ap(items: np.ndarray) -> float:
    """Average precision of [rank, label]; NaN where a draw of items lacks one of the labels."""
    if np.ptp(items[:, 1]) == 0:
        return float("nan")
    return average_precision(items[:, 0], items[:, 1])
