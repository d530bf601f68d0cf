"""Correlation of predicted with gold scores: the survey's Eq. 2 and 3."""

import numpy as np

from polyvec.errors import DataError, ShapeError
from polyvec.evaluate.measures.inputs import Numbers, extra, numbers


def pearson(predicted: Numbers, gold: Numbers) -> float:
    """Pearson's correlation (Eq. 2), -1 to 1: 1 if predictions are linear in gold scores.

    Raises DataError if either side is constant or not finite: the correlation is undefined.
    Pearson 1895.

    >>> round(pearson([1, 2, 3], [1, 2, 6]), 4)
    0.9449
    """
    found = _scores(predicted, gold)
    return float(extra("scipy.stats", "Pearson's correlation").pearsonr(*found).statistic)


def spearman(predicted: Numbers, gold: Numbers) -> float:
    """Spearman's correlation (Eq. 3), -1 to 1: Pearson's of the ranks, ties by average rank.

    The short form 1 - 6 sum(d^2) / (n (n^2 - 1)) holds only without ties.
    Raises DataError as `pearson` does. Spearman 1904.

    >>> round(spearman([5, 5, 9], [1, 2, 3]), 4)
    0.866
    """
    found = _scores(predicted, gold)
    return float(extra("scipy.stats", "Spearman's correlation").spearmanr(*found).statistic)


def correlations(predicted: Numbers, gold: Numbers) -> dict[str, float]:
    """Spearman's and Pearson's correlation by name, with the same errors."""
    return {"spearman": spearman(predicted, gold), "pearson": pearson(predicted, gold)}


def _scores(predicted: Numbers, gold: Numbers) -> tuple[np.ndarray, np.ndarray]:
    if len(predicted) != len(gold):
        raise ShapeError(
            f"correlation: {len(predicted)} predicted scores, {len(gold)} gold; give one for each "
            "item"
        )
    found = []
    for name, values in (("predicted", predicted), ("gold", gold)):
        found.append(numbers(f"correlation: {name} scores", values))
        # scipy returns NaN with a warning here, which an average of tasks would hide.
        if len(values) < 2 or np.ptp(found[-1]) == 0:
            raise DataError(
                f"correlation: all {len(values)} {name} scores are equal, expected at least two "
                "different ones"
            )
    return found[0], found[1]
