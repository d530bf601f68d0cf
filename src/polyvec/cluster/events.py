"""Groups of dated texts: peaks in time first, then groups of what was written around each.

The first half of KeyEvents (Nakshatri et al. 2023): its second, merging groups of one event, is the
feedback `merge`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polyvec.cluster.algorithms import ALGORITHMS, Agglomerative, Algorithm
from polyvec.cluster.grouping import numbered, unit
from polyvec.cluster.ranges import COUNT, Ranges
from polyvec.errors import SettingsError


@ALGORITHMS.register("peaks")
@dataclass(frozen=True, slots=True)
class Peaks(Algorithm):
    """Texts go to the nearest peak of the number of texts a day, and are merged within it.

    distance: up to which groups of unit vectors merge (average linkage, Euclidean). window: days
    over which counts are averaged. Needs dates, which `TextClusterer.fit` gets as days.
    """

    RANGES: ClassVar[Ranges] = {"distance": (0, math.inf), "window": COUNT}

    distance: float = 1.0
    window: int = 3

    @property
    def needs_k(self) -> bool:
        return False

    def labels(self, vectors_NE: np.ndarray, k: int | None, seed: int) -> np.ndarray:
        raise SettingsError("method 'peaks' needs the date of each text; give --date-column")

    def dated(self, vectors_NE: np.ndarray, days_N: np.ndarray, k: int | None) -> np.ndarray:
        """The group of each text, int64 [N]; days_N are whole or parts of days."""
        if k is not None:
            raise SettingsError(
                f"peaks finds the number of groups itself, so k {k} has no effect; leave it out, "
                "or set distance"
            )
        tops = peaks(days_N, self.window)
        near_N = np.abs(days_N[:, None] - tops[None]).argmin(1)
        merged = Agglomerative("average", self.distance)
        labels_N, start = np.full(len(days_N), -1, np.int64), 0
        for peak in range(len(tops)):
            rows = np.flatnonzero(near_N == peak)
            if len(rows) > 1:
                labels_N[rows] = start + merged.labels(unit(vectors_NE[rows]), None, 0)
            elif len(rows):
                labels_N[rows] = start
            start = int(labels_N.max(initial=-1)) + 1
        return numbered(labels_N)


def peaks(days_N: np.ndarray, window: int) -> np.ndarray:
    """The days on which more was written than on those around, by a moving average; at least one.

    >>> peaks(np.array([0, 0, 0, 1, 9, 9, 10]), 1).tolist()
    [0.0, 9.0]
    """
    first = np.floor(days_N.min())
    counts = np.bincount((np.floor(days_N) - first).astype(int))
    # Sums, not means: days with equal ones are equal to the bit.
    smooth = np.convolve(counts, np.ones(min(window, len(counts)), np.int64), mode="same")
    # Of days in a row with equal sums the first stands for all.
    firsts = np.flatnonzero(np.diff(smooth, prepend=-1))
    levels = smooth[firsts]
    padded = np.pad(levels, 1, constant_values=-1)
    top = (levels > smooth.mean()) & (levels > padded[:-2]) & (levels > padded[2:])
    found = firsts[top]
    if not len(found):
        found = np.array([int(smooth.argmax())])
    return (found + first).astype(float)
