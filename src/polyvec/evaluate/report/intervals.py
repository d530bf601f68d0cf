"""How far a score may be off by the luck of its items: a bootstrap cheap enough for every task.

Two statistics make nearly all scores, the mean and Spearman's correlation. Both are resampled by
array operations, the others by calling them. Shapes: S samples, N items, G groups of equal values.
"""

import warnings
from collections.abc import Callable

import numpy as np

from polyvec.evaluate.outcome import Statistic
from polyvec.evaluate.significance import spearman

NUM_SAMPLES = 500
MIN_ITEMS = 10  # an interval of fewer says little, and of Spearman nothing
MAX_ITEMS = 20_000  # of more it is narrower than the bars that show it
BUDGET = 4_000_000  # items drawn a task
BUDGET_CALLED = 300_000  # where the statistic is called for each sample
CHUNK = 500_000  # items drawn at once: what stays in a processor's cache

Interval = tuple[float, float]


def mean(items: np.ndarray) -> float:
    """Mean of the first column."""
    return float(items[:, 0].mean())


def interval(sampled: np.ndarray | None) -> Interval | None:
    """The middle 95 % of a bootstrap's scores; none if a tenth of them are no numbers."""
    if sampled is None:
        return None
    finite = sampled[np.isfinite(sampled)]
    if len(finite) < 0.9 * len(sampled):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def bootstrap(
    items: np.ndarray, statistic: Statistic, *, num_samples: int = NUM_SAMPLES, seed: int = 0
) -> np.ndarray | None:
    """The statistic of items drawn with replacement, [S]; none for too few or too many items.

    Fewer samples than asked for where there are many items: at least 100.
    """
    items = np.asarray(items, float).reshape(len(items), -1)
    if not MIN_ITEMS <= len(items) <= MAX_ITEMS:
        return None
    draw = np.random.default_rng(seed)
    resample = resampling(items, statistic)
    budget = BUDGET_CALLED if resample is None else BUDGET
    num_samples = min(num_samples, max(100, budget // len(items)))
    if resample is None:
        rows = (draw.integers(0, len(items), len(items)) for _ in range(num_samples))
        return np.array([score(statistic, items[row]) for row in rows])
    per_chunk = max(1, CHUNK // len(items))
    sizes = [min(per_chunk, num_samples - at) for at in range(0, num_samples, per_chunk)]
    return np.concatenate([resample(counts_of(draw, len(items), size)) for size in sizes])


def score(statistic: Statistic, items: np.ndarray) -> float:
    """The statistic of items, NaN where they have none: all gold scores equal, no positives."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return float(statistic(items))
        except (ValueError, ZeroDivisionError):
            return float("nan")


def resampling(items: np.ndarray, statistic: Statistic) -> Callable[..., np.ndarray] | None:
    """The array form of a statistic that is one of the two known ones by what it gives."""
    draw = np.random.default_rng(1)
    probes = [items, *(items[draw.integers(0, len(items), len(items))] for _ in range(3))]
    found = [score(statistic, probe) for probe in probes]
    if np.allclose(found, [mean(probe) for probe in probes], rtol=0, atol=1e-9):
        return lambda counts_SN: counts_SN @ items[:, 0] / len(items)
    if items.shape[1] != 2 or not np.isfinite(found).all():
        return None
    if not np.allclose(found, [score(spearman, probe) for probe in probes], rtol=0, atol=1e-9):
        return None
    first, second = (_Order(column) for column in items.T)
    return lambda counts_SN: _correlation(first(counts_SN), second(counts_SN), counts_SN)


def counts_of(draw: np.random.Generator, num_items: int, num_samples: int) -> np.ndarray:
    """How often each item is in each sample, [S, N]."""
    rows_SN = draw.integers(0, num_items, (num_samples, num_items), dtype=np.int32)
    rows_SN += num_items * np.arange(num_samples, dtype=np.int32)[:, None]
    counts = np.bincount(rows_SN.ravel(), minlength=num_samples * num_items)
    return counts.reshape(num_samples, num_items).astype(float)


class _Order:
    """A column's order, kept so that each sample is ranked without sorting again."""

    def __init__(self, column: np.ndarray) -> None:
        _, self.group, sizes = np.unique(column, return_inverse=True, return_counts=True)
        self.by_value = np.argsort(self.group, kind="stable")
        self.starts = np.cumsum(sizes) - sizes

    def __call__(self, counts_SN: np.ndarray) -> np.ndarray:
        """Ranks from 1, ties by average, of the items of each sample."""
        counts_SG = np.add.reduceat(counts_SN[:, self.by_value], self.starts, axis=1)
        ranks_SG = np.cumsum(counts_SG, axis=1) - (counts_SG - 1) / 2
        return ranks_SG[:, self.group]


def _correlation(a_SN: np.ndarray, b_SN: np.ndarray, counts_SN: np.ndarray) -> np.ndarray:
    """Pearson's correlation of ranks, each item as often as it was drawn, [S]."""
    middle = (counts_SN.shape[1] + 1) / 2
    a_SN, b_SN = a_SN - middle, b_SN - middle
    weighted_SN = counts_SN * a_SN
    both = np.einsum("sn,sn->s", weighted_SN, b_SN)
    spread = np.einsum("sn,sn->s", weighted_SN, a_SN)
    spread *= np.einsum("sn,sn,sn->s", counts_SN, b_SN, b_SN)
    with np.errstate(all="ignore"):
        return both / np.sqrt(spread)
