"""Whether one model is better than another on a task, or the difference is due to chance.

Both models are scored on the same items (queries, or pairs of sentences), so the tests are paired:
the bootstrap draws items with replacement for an interval of the difference, the permutation test
swaps the two models' values item by item for a p-value. N items.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from polyvec.errors import DataError, InputError, ShapeError
from polyvec.evaluate.measures.inputs import extra
from polyvec.settings import check_seed

Statistic = Callable[[np.ndarray], float]
NUM_SAMPLES = 1000
MOST_SAMPLES = 10_000_000
BATCH = 100  # samples drawn at a time, to bound memory


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


def check_samples(num_samples: int) -> None:
    """Raises InputError for a number of samples that gives no interval, or never ends."""
    whole = isinstance(num_samples, Integral) and not isinstance(num_samples, bool)
    if not whole or not 2 <= num_samples <= MOST_SAMPLES:
        raise InputError(
            f"compare: {num_samples!r} samples, expected a whole number from 2 to {MOST_SAMPLES:,}"
        )


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
    InputError for fewer than 2 items or samples or a negative seed, DataError for an item that is
    NaN or infinite.
    """
    check_seed(seed)
    check_samples(num_samples)
    a, b = (np.asarray(x, float).reshape(len(x), -1) for x in (a, b))
    if a.shape != b.shape:
        raise ShapeError(
            f"compare: items of shapes {a.shape} and {b.shape}, expected equal shapes; score both "
            "models on the same items"
        )
    for name, items in (("first", a), ("second", b)):
        wrong = np.flatnonzero(~np.isfinite(items).all(axis=1))
        if len(wrong):
            raise DataError(
                f"compare: item {wrong[0]} of the {name} model is NaN or infinite "
                f"({len(wrong)} of {len(items)} are); leave these items out for both models"
            )
    if len(a) < 2:
        raise InputError(f"compare: {len(a)} items, expected at least 2")
    rng, shared = np.random.default_rng(seed), a[:, 1:]

    def difference(rows: np.ndarray) -> float:
        return statistic(b[rows]) - statistic(a[rows])

    def gap(first: np.ndarray, second: np.ndarray) -> float:
        x, y = (statistic(np.column_stack([column, shared])) for column in (first, second))
        # Rounded, because swaps that give the same difference may differ in the last bits.
        return round(abs(y - x), 12)

    stats = extra("scipy.stats", "comparing two models")
    options = {"vectorized": False, "n_resamples": num_samples, "batch": BATCH, "rng": rng}
    # Row numbers are resampled, so that the items of both models stay paired.
    with warnings.catch_warnings():
        # Samples whose statistic is undefined (all gold scores equal) are NaN, which scipy warns
        # of as a failure of another method; they are left out of the interval.
        warnings.simplefilter("ignore")
        sampled = stats.bootstrap((np.arange(len(a)),), difference, method="percentile", **options)
    low, high = np.nanpercentile(sampled.bootstrap_distribution, [2.5, 97.5])
    swapped = stats.permutation_test(
        (a[:, 0], b[:, 0]), gap, permutation_type="samples", alternative="greater", **options
    )
    return Comparison(
        statistic(a), statistic(b), float(low), float(high), float(swapped.pvalue), len(a)
    )


def spearman(items: np.ndarray) -> float:
    """Spearman's correlation of the first two columns; ties have average ranks."""
    stats = extra("scipy.stats", "Spearman's correlation")
    return float(stats.spearmanr(items[:, 0], items[:, 1]).statistic)
