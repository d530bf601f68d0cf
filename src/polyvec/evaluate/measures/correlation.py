"""Do two lists of scores rise together? The survey's Eq. 2 and 3."""

import numpy as np

from polyvec.errors import DataError, ShapeError
from polyvec.evaluate.measures.inputs import Numbers, extra, numbers


def pearson(predicted: Numbers, gold: Numbers) -> float:
    """Pearson's correlation (Eq. 2), -1 to 1: 1 where predicted scores are a line of the gold ones.

    Raises DataError where either side is constant or not finite: there is no correlation then.
    Pearson 1895.

    >>> round(pearson([1, 2, 3], [1, 2, 6]), 4)
    0.9449
    """
    found = _scores(predicted, gold)
    return float(extra("scipy.stats", "Pearson's correlation").pearsonr(*found).statistic)


def spearman(predicted: Numbers, gold: Numbers) -> float:
    """Spearman's correlation (Eq. 3), -1 to 1: Pearson's of the ranks, ties by average rank.

    The short form 1 - 6 sum(d^2) / (n (n^2 - 1)) holds only where no two scores are equal.
    Raises DataError as `pearson` does. Spearman 1904.

    >>> round(spearman([5, 5, 9], [1, 2, 3]), 4)
    0.866
    """
    found = _scores(predicted, gold)
    return float(extra("scipy.stats", "Spearman's correlation").spearmanr(*found).statistic)


def correlations(predicted: Numbers, gold: Numbers) -> dict[str, float]:
    """Spearman's and Pearson's correlation by name; raises what they raise."""
    return {"spearman": spearman(predicted, gold), "pearson": pearson(predicted, gold)}


def _scores(predicted: Numbers, gold: Numbers) -> tuple[np.ndarray, np.ndarray]:
    if len(predicted) != len(gold):
        raise ShapeError(f"correlation: {len(predicted)} predicted scores, {len(gold)} gold")
    found = []
    for name, values in (("predicted", predicted), ("gold", gold)):
        found.append(numbers(f"correlation: {name} scores", values))
        if len(values) < 2 or np.ptp(found[-1]) == 0:
            raise DataError(f"correlation: all {len(values)} {name} scores are equal")
    return found[0], found[1]
