"""Classification: scores of pairs at their best threshold, and predicted labels, as in MTEB."""

from typing import Any, NamedTuple

import numpy as np

from polyvec.errors import DataError, SettingsError, ShapeError, known
from polyvec.evaluate.measures.inputs import (
    Labels,
    Numbers,
    classes,
    extra,
    numbers,
    paired,
    vector_pairs,
)

AVERAGES = ("macro", "micro", "weighted")


class AtThreshold(NamedTuple):
    """A measure's best value, the threshold that gives it, and precision and recall there.

    Scores above the threshold count as positive; it is the midpoint between two scores.
    """

    value: float
    threshold: float
    precision: float
    recall: float


def average_precision(scores: Numbers, labels: Numbers) -> float:
    """Mean precision at each positive, best score first, 0 to 1; share of positives if random.

    Equal scores are one step, so the order of items does not matter. Raises DataError unless labels
    are 0 and 1 and both occur. scikit-learn's, which MTEB uses.

    >>> round(average_precision([0.9, 0.8, 0.7], [1, 0, 1]), 4)
    0.8333
    """
    found = _binary("average_precision", scores, labels)
    return float(extra("sklearn.metrics", "AP").average_precision_score(found[1], found[0]))


def best_accuracy(scores: Numbers, labels: Numbers) -> AtThreshold:
    """Highest accuracy of any threshold between two different scores, 0 to 1.

    Thresholds below or above all scores are not tried, as in MTEB and sentence-transformers. Raises
    DataError if all scores are equal, or unless labels are 0 and 1 and both occur.

    >>> best_accuracy([0.9, 0.8, 0.4, 0.2], [1, 0, 1, 0]).value
    0.75
    """
    return _best("best_accuracy", scores, labels)


def best_f1(scores: Numbers, labels: Numbers) -> AtThreshold:
    """Highest F1 of the positives, 0 to 1, of the thresholds that `best_accuracy` tries.

    >>> best_f1([0.9, 0.8, 0.4, 0.2], [1, 0, 1, 0])
    AtThreshold(value=0.8, threshold=0.30000000000000004, precision=0.6666666666666666, recall=1.0)
    """
    return _best("best_f1", scores, labels)


def pair_classification(a: Any, b: Any, labels: Numbers) -> dict[str, float]:
    """MTEB's scores of pairs of vectors, [N, E] each, with labels 1 (positive) and 0.

    accuracy and f1 at their best threshold, precision and recall at that of f1, and ap, for
    similarity by cosine, dot product, Manhattan and Euclidean distance ("cosine_ap"), and the best
    of the four ("max_ap"). The cosine with a zero vector is 0.
    """
    a_NE, b_NE = (x.astype(np.float64) for x in vector_pairs("pair_classification", a, b))
    dot_N = (a_NE * b_NE).sum(axis=1)
    lengths_N = np.linalg.norm(a_NE, axis=1) * np.linalg.norm(b_NE, axis=1)
    similarities = {
        "cosine": np.divide(dot_N, lengths_N, out=np.zeros_like(dot_N), where=lengths_N > 0),
        "dot": dot_N,
        "manhattan": -np.abs(a_NE - b_NE).sum(axis=1),
        "euclidean": -np.linalg.norm(a_NE - b_NE, axis=1),
    }
    found = {name: _pair_scores(scores_N, labels) for name, scores_N in similarities.items()}
    by_name = {f"{name}_{key}": value for name in found for key, value in found[name].items()}
    best = {f"max_{key}": max(each[key] for each in found.values()) for key in found["cosine"]}
    return by_name | best


def accuracy(predicted: Labels, gold: Labels) -> float:
    """Share of correct labels, 0 to 1; labels of any type.

    >>> accuracy(["a", "b", "b"], ["a", "b", "a"])
    0.6666666666666666
    """
    paired("accuracy", predicted, gold, of="labels")
    pairs = zip(classes("accuracy", predicted), classes("accuracy", gold), strict=True)
    return float(np.mean([a == b for a, b in pairs]))


def f1(predicted: Labels, gold: Labels, *, average: str = "macro") -> float:
    """Mean F1 of the classes, 0 to 1; classes are those of either side.

    "macro": all classes count equally; "weighted": by their number in gold, as in MTEB's bitext
    mining; "micro": over all items, which equals accuracy. A class never predicted has F1 0.

    >>> round(f1(["a", "b", "b"], ["a", "b", "a"]), 4)
    0.6667
    """
    paired("f1", predicted, gold, of="labels")
    if average not in AVERAGES:
        raise SettingsError(f"f1: average {average!r} is not known." + known(average, AVERAGES))
    left, right = classes("f1", predicted), classes("f1", gold)
    # Integers, because scikit-learn refuses labels of mixed types or compares them as strings.
    code = {label: i for i, label in enumerate(dict.fromkeys([*right, *left]))}
    numbered = [code[label] for label in right], [code[label] for label in left]
    score = extra("sklearn.metrics", "F1").f1_score
    return float(score(*numbered, average=average, zero_division=0))


def _pair_scores(scores_N: np.ndarray, labels: Numbers) -> dict[str, float]:
    f1_at = best_f1(scores_N, labels)
    return {
        "accuracy": best_accuracy(scores_N, labels).value,
        "f1": f1_at.value,
        "precision": f1_at.precision,
        "recall": f1_at.recall,
        "ap": average_precision(scores_N, labels),
    }


def _best(measure: str, scores: Numbers, labels: Numbers) -> AtThreshold:
    """The best of the thresholds between different scores, tried from the highest down."""
    scores_N, labels_N = _binary(measure, scores, labels)
    order = np.argsort(-scores_N, kind="stable")
    scores_N, labels_N = scores_N[order], labels_N[order]
    # No threshold separates equal scores, so only the last of each run of them can be a cut.
    cuts = np.flatnonzero(scores_N[:-1] != scores_N[1:])
    if not len(cuts):
        raise DataError(
            f"{measure}: all {len(scores_N)} scores are equal, so no threshold separates them"
        )
    num_called, num_positive = cuts + 1, labels_N.sum()
    num_right = labels_N.cumsum()[cuts]
    num_right_negative = len(labels_N) - num_positive - (num_called - num_right)
    values = {
        "best_accuracy": (num_right + num_right_negative) / len(labels_N),
        "best_f1": 2 * num_right / (num_called + num_positive),
    }[measure]
    i = int(values.argmax())
    return AtThreshold(
        float(values[i]),
        # Halved before they are added, because the sum of two large scores could overflow.
        float(scores_N[cuts[i]] / 2 + scores_N[cuts[i] + 1] / 2),
        float(num_right[i] / num_called[i]),
        float(num_right[i] / num_positive),
    )


def _binary(what: str, scores: Numbers, labels: Numbers) -> tuple[np.ndarray, np.ndarray]:
    scores_N, labels_N = numbers(f"{what}: scores", scores), numbers(f"{what}: labels", labels)
    if len(scores_N) != len(labels_N):
        raise ShapeError(
            f"{what}: {len(scores_N)} scores, {len(labels_N)} labels; give one for each item"
        )
    found = sorted(set(labels_N.tolist()))
    if found != [0, 1]:
        shown = ", ".join(f"{label:g}" for label in found[:5]) or "none"
        raise DataError(f"{what}: expected labels 0 and 1, both at least once, got: {shown}")
    return scores_N, labels_N.astype(int)
