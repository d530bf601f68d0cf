"""Whether one model is better than another on a task, or the difference is due to chance.

Both models are scored on the same items (queries, or pairs of sentences), so the tests are paired:
the bootstrap draws items with replacement for an interval of the difference, the permutation test
swaps the two models' values item by item for a p-value. N items.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polyvec.errors import InputError, ShapeError

Statistic = Callable[[np.ndarray], float]
NUM_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores of two models, the 95 % interval of their difference b - a, and its p-value.

    `p_value` is two-sided: the share of random swaps of the models' values with a difference at
    least as large.
    """

    a: float
    b: float
    low: float
    high: float
    p_value: float
    num_items: int

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at the 5 % level, by both test and interval."""
        return self.p_value < 0.05 and (self.low > 0 or self.high < 0)


def compare(
    a: np.ndarray,
    b: np.ndarray,
    statistic: Statistic = lambda items: float(items[:, 0].mean()),
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap and permutation test of two models' items.

    `a` and `b` are [N, ...], a row per item: the first column is the model's value (nDCG of a
    query, similarity of a pair), the others are the same for both models (the gold score).
    `statistic` computes the task's score from them. Raises ShapeError for different shapes,
    InputError for fewer than 2 items or samples.
    """
    a, b = (np.asarray(x, float).reshape(len(x), -1) for x in (a, b))
    if a.shape != b.shape:
        raise ShapeError(
            f"compare: items of shapes {a.shape} and {b.shape}, expected equal shapes; score both "
            "models on the same items"
        )
    if len(a) < 2 or num_samples < 2:
        raise InputError(
            f"compare: {len(a)} items and {num_samples} samples, expected at least 2 of both"
        )
    draw = np.random.default_rng(seed)
    scores = statistic(a), statistic(b)
    # Samples whose statistic is undefined (all gold scores equal) are NaN, and left out below.
    differences = []
    for _ in range(num_samples):
        rows = draw.integers(0, len(a), len(a))
        differences.append(statistic(b[rows]) - statistic(a[rows]))
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    p_value = _permuted(a, b, statistic, abs(scores[1] - scores[0]), num_samples, draw)
    return Comparison(*scores, float(low), float(high), p_value, len(a))


def _permuted(
    a: np.ndarray,
    b: np.ndarray,
    statistic: Statistic,
    observed: float,
    num: int,
    draw: np.random.Generator,
) -> float:
    """Share of random swaps with a difference at least as large.

    The observed one counts as a swap, so that no p-value is 0 (Phipson and Smyth 2010).
    """
    as_large = 0
    for _ in range(num):
        swap = draw.random(len(a)) < 0.5
        one, two = a.copy(), b.copy()
        one[swap, 0], two[swap, 0] = b[swap, 0], a[swap, 0]
        # Swaps that give the same difference may differ from it by rounding.
        as_large += abs(statistic(two) - statistic(one)) >= observed - 1e-12
    return (as_large + 1) / (num + 1)


def spearman(items: np.ndarray) -> float:
    """Spearman's correlation of the first two columns; ties have average ranks."""
    from scipy import stats

    return float(stats.spearmanr(items[:, 0], items[:, 1]).statistic)
