"""Nearest neighbours within a set of vectors: hubs, and the dimension that neighbours span.

All pairs are compared in bounded memory, so time grows with the square of N. Distances are compared
in the precision of the vectors, float32 or float64. N vectors, E numbers each, k neighbours.
"""

from typing import Any

import numpy as np

from polyvec.errors import DataError, SettingsError, known
from polyvec.evaluate.measures.inputs import matrix, unit, whole
from polyvec.index.exact import top_k

METRICS = ("cosine", "euclidean")
ROWS = 256  # vectors whose neighbours' vectors are gathered at a time


def hubness(vectors: Any, k: int = 10, *, metric: str = "cosine") -> float:
    """Skewness of the k-occurrences: above 0 if a few vectors are neighbours of very many.

    0 if every vector is a neighbour equally often. Radovanović et al. 2010, JMLR 11.

    >>> cross = [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    >>> hubness(cross, 1, metric="euclidean")  # k-occurrences 4 1 0 0 0: deviations 3 0 -1 -1 -1
    1.2909...
    """
    counts_N = k_occurrence(vectors, k, metric=metric).astype(float)
    deviation_N = counts_N - counts_N.mean()
    variance = (deviation_N**2).mean()
    return float((deviation_N**3).mean() / variance**1.5) if variance else 0.0


def k_occurrence(vectors: Any, k: int = 10, *, metric: str = "cosine") -> np.ndarray:
    """How often each vector is among the k nearest neighbours of another, [N]; k on average.

    `metric` is "cosine" or "euclidean"; of equally near vectors the first rows count. Raises
    SettingsError for a k of N or more, DataError for a zero vector under cosine.

    >>> k_occurrence([[0.0], [1.0], [3.0]], 1, metric="euclidean")
    array([1, 2, 0])
    """
    rows_NK = _nearest("k_occurrence", matrix("k_occurrence", vectors), k, metric)
    return np.bincount(rows_NK.ravel(), minlength=len(rows_NK))


def intrinsic_dimension(vectors: Any, k: int = 20) -> float:
    """Mean local intrinsic dimension: the number of directions in which k neighbours spread.

    The maximum likelihood estimate from the neighbours' Euclidean distances r_1..r_k,
    1 / mean of log(r_k / r_i): Amsaleg et al. 2015 (KDD); used by Cai et al. 2021 (ICLR).
    Raises SettingsError for a k below 2 or of N or more, DataError for duplicate vectors, or where
    all k neighbours are equally far.
    """
    vectors_NE = matrix("intrinsic_dimension", vectors)
    rows_NK = _nearest("intrinsic_dimension", vectors_NE, whole("k", k, at_least=2), "euclidean")
    found = []
    for start in range(0, len(rows_NK), ROWS):
        here = slice(start, start + ROWS)
        apart = vectors_NE[rows_NK[here]].astype(np.float64) - vectors_NE[here, None]
        found.append(_dimensions(np.linalg.norm(apart, axis=2), start))
    return float(np.concatenate(found).mean())


def _dimensions(distances_NK: np.ndarray, start: int) -> np.ndarray:
    farthest_N = distances_NK.max(axis=1)
    if not distances_NK.all():
        row = start + int(np.flatnonzero((distances_NK == 0).any(axis=1))[0])
        raise DataError(f"intrinsic_dimension: vector {row} has a duplicate; remove duplicates")
    logs_N = np.log(farthest_N[:, None] / distances_NK).mean(axis=1)
    if not logs_N.all():
        row = start + int(np.flatnonzero(logs_N == 0)[0])
        raise DataError(
            f"intrinsic_dimension: all neighbours of vector {row} are equally far; use a larger k"
        )
    dimensions_N: np.ndarray = 1 / logs_N
    return dimensions_N


def _nearest(what: str, vectors_NE: np.ndarray, k: int, metric: str) -> np.ndarray:
    """Rows of each vector's k nearest others, [N, k], in ascending order."""
    if metric not in METRICS:
        raise SettingsError(f"{what}: metric {metric!r} is not known.{known(metric, METRICS)}")
    if whole("k", k) >= len(vectors_NE):
        raise SettingsError(
            f"{what}: k must be below the number of vectors, {len(vectors_NE)}, not {k}"
        )
    if metric == "cosine":
        points_NE, offset_N = unit(what, vectors_NE), vectors_NE.dtype.type(0)
    else:
        # d^2 = |x|^2 + |y|^2 - 2 x.y, where |x|^2 is the same for all neighbours y of x. Centred,
        # because large norms that cancel would leave few digits of the distance.
        points_NE = vectors_NE - vectors_NE.mean(axis=0)
        offset_N = np.einsum("ne,ne->n", points_NE, points_NE) / 2

    def nearness(some_ME: np.ndarray, all_NE: np.ndarray) -> np.ndarray:
        scores_MN: np.ndarray = some_ME @ all_NE.T - offset_N
        return scores_MN

    _, rows_NK = top_k(points_NE, points_NE, k, nearness, skip_own_row=True)
    rows_NK.sort(axis=1)
    return rows_NK
