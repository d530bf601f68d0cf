"""Who is whose nearest neighbour? All pairs are compared, in blocks of bounded memory.

Time grows with the square of N. What is nearer is decided in the vectors' own precision, float32
or float64.
"""

from typing import Any

import numpy as np

from polyvec.errors import DataError, SettingsError, known
from polyvec.evaluate.measures.inputs import matrix, unit, whole

METRICS = ("cosine", "euclidean")
ROWS = 256  # vectors whose neighbours' vectors are held at a time
BLOCK = 2**24  # similarities held at a time


def hubness(vectors: Any, k: int = 10, *, metric: str = "cosine") -> float:
    """Skewness of the k-occurrences: above 0 if a few vectors are neighbours of very many.

    0 if every vector is as often a neighbour as any other. Radovanović et al. 2010, JMLR 11.

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

    Nearest by "cosine" or "euclidean"; of equally near ones the first rows. Raises SettingsError
    for a k that is not below N, DataError for a vector of length 0 under cosine.

    >>> k_occurrence([[0.0], [1.0], [3.0]], 1, metric="euclidean")
    array([1, 2, 0])
    """
    rows_NK = _nearest("k_occurrence", matrix("k_occurrence", vectors), k, metric)
    return np.bincount(rows_NK.ravel(), minlength=len(rows_NK))


def intrinsic_dimension(vectors: Any, k: int = 20) -> float:
    """Local intrinsic dimension, mean: in how many directions the k nearest neighbours spread.

    Maximum likelihood of the neighbours' Euclidean distances r_1..r_k, 1 / mean of log(r_k / r_i):
    Amsaleg et al. 2015 (KDD); used by Cai et al. 2021 (ICLR). Raises SettingsError for a k below 2
    or not below N, DataError where vectors are equal (remove doubles) or all k as far.
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
        raise DataError(f"intrinsic_dimension: vector {row} has a double; remove doubles")
    logs_N = np.log(farthest_N[:, None] / distances_NK).mean(axis=1)
    if not logs_N.all():
        row = start + int(np.flatnonzero(logs_N == 0)[0])
        raise DataError(f"intrinsic_dimension: all neighbours of vector {row} are equally far")
    return 1 / logs_N


def _nearest(what: str, vectors_NE: np.ndarray, k: int, metric: str) -> np.ndarray:
    """Rows of each vector's k nearest others, [N, k], in the order of the rows."""
    if metric not in METRICS:
        raise SettingsError(f"{what}: metric {metric!r} is not known." + known(metric, METRICS))
    num = len(vectors_NE)
    if whole("k", k) >= num:
        raise SettingsError(f"{what}: k must be below the number of vectors, {num}, not {k}")
    if metric == "cosine":
        points_NE, offset_N = unit(what, vectors_NE), vectors_NE.dtype.type(0)
    else:  # d^2 = |x|^2 + |y|^2 - 2 x.y; around the mean, so that little cancels
        points_NE = vectors_NE - vectors_NE.mean(axis=0)
        offset_N = np.einsum("ne,ne->n", points_NE, points_NE) / 2
    step, found = max(1, BLOCK // num), []
    for start in range(0, num, step):
        near_MN = points_NE[start : start + step] @ points_NE.T - offset_N
        itself = np.arange(len(near_MN))
        near_MN[itself, start + itself] = -np.inf
        found.append(_first_largest(near_MN, k))
    return np.concatenate(found)


def _first_largest(scores_MN: np.ndarray, k: int) -> np.ndarray:
    """Columns of each row's k largest; of those that are equal at the border, the first."""
    kth_M1 = np.partition(scores_MN, -k, axis=1)[:, -k, None]
    above_MN, equal_MN = scores_MN > kth_M1, scores_MN == kth_M1
    room_M1 = k - above_MN.sum(axis=1, keepdims=True)
    taken_MN = above_MN | (equal_MN & (equal_MN.cumsum(axis=1, dtype=np.int32) <= room_M1))
    return np.nonzero(taken_MN)[1].reshape(-1, k)
