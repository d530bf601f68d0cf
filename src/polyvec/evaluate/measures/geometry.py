"""How vectors fill their space: alignment, uniformity, isotropy and rank.

N vectors, E numbers each, are read in blocks, so 100,000 vectors of 1,024 fit in memory. Only the
time of `uniformity` grows with the square of N: give it a sample where N is large.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from polyvec.errors import DataError, ShapeError
from polyvec.evaluate.measures.inputs import (
    BLOCK,
    Labels,
    classes,
    extra,
    matrix,
    positive,
    unit,
    vector_pairs,
)

PAIRS_BLOCK = 2048  # vectors compared with as many others at a time: 32 MiB of float64


def alignment(a: Any, b: Any, *, alpha: float = 2.0) -> float:
    """Mean distance of positive pairs on the unit sphere, to the power alpha; 0 to 2^alpha.

    0 is best: the vectors of each pair coincide. Row i of `a` and row i of `b` are a pair, both
    [N, E]. Wang and Isola 2020, arXiv:2005.10242.

    >>> alignment([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 0.0]])
    1.0
    """
    a_NE, b_NE = vector_pairs("alignment", a, b)
    power, total = positive("alpha", alpha), 0.0
    a_NE, b_NE = unit("alignment", a_NE), unit("alignment", b_NE)
    for rows in _blocks(len(a_NE)):
        difference = a_NE[rows].astype(np.float64) - b_NE[rows]
        total += ((difference**2).sum(axis=1) ** (power / 2)).sum()
    return float(total / len(a_NE))


def uniformity(vectors: Any, *, t: float = 2.0) -> float:
    """Log of the mean Gaussian kernel exp(-t d^2) of all pairs on the unit sphere; -4t to 0.

    Lower is better: 0 if all vectors have the same direction, -4 (at t=2) if all are orthogonal.
    A vector is not paired with itself. Wang and Isola 2020, arXiv:2005.10242.

    >>> uniformity([[1.0, 0.0], [0.0, 1.0], [0.0, 5.0]], t=2.0)  # log((2 exp(-4) + 1) / 3)
    -1.0626...
    """
    vectors_NE = unit("uniformity", matrix("uniformity", vectors))
    logsumexp = extra("scipy.special", "uniformity").logsumexp
    scale, num, found = positive("t", t), len(vectors_NE), -np.inf
    for start in range(0, num, PAIRS_BLOCK):
        rows = vectors_NE[start : start + PAIRS_BLOCK]
        for other in range(start, num, PAIRS_BLOCK):
            cosines = rows @ vectors_NE[other : other + PAIRS_BLOCK].T
            if other == start:
                cosines = cosines[np.triu_indices(len(rows), 1)]
            # |a - b|^2 of unit vectors; rounding can make it slightly negative.
            squares = np.maximum(2 - 2 * cosines.astype(np.float64), 0)
            found = np.logaddexp(found, logsumexp(-scale * squares.ravel()))
    return float(found - np.log(num * (num - 1) / 2))


def mean_cosine(vectors: Any) -> float:
    """Mean cosine of all pairs of vectors, -1 / (N - 1) to 1: near 0 if isotropic, 1 if all agree.

    Exact in linear time, from the length of the sum of the unit vectors. Ethayarajh 2019,
    arXiv:1909.00512.

    >>> round(mean_cosine([[1.0, 0.0], [0.0, 1.0], [0.0, 5.0]]), 4)
    0.3333
    """
    vectors_NE = unit("mean_cosine", matrix("mean_cosine", vectors))
    num, sum_E = len(vectors_NE), vectors_NE.sum(axis=0, dtype=np.float64)
    return float((sum_E @ sum_E - num) / (num * (num - 1)))


def isotropy(vectors: Any) -> float:
    """Smallest over largest partition function of all directions, 0 to 1: 1 if isotropic.

    Z(c) = sum over vectors of exp(c . v), for the eigenvectors c of V'V and their opposites (the
    paper takes whichever sign its solver returns). It depends on the vectors' lengths: short
    vectors always score near 1. Mu and Viswanath 2018, arXiv:1702.01417.

    >>> round(isotropy([[1.0, 0.0], [-1.0, 0.0]]), 4)  # 1 / cosh 1
    0.6481
    """
    vectors_NE = matrix("isotropy", vectors, at_least=1)
    logsumexp = extra("scipy.special", "isotropy").logsumexp
    directions_ED = np.linalg.eigh(_gram(vectors_NE))[1]
    log_z = np.full((2, len(directions_ED)), -np.inf)
    for rows in _blocks(len(vectors_NE)):
        along_ND = vectors_NE[rows].astype(np.float64) @ directions_ED
        log_z = np.logaddexp(log_z, [logsumexp(sign * along_ND, axis=0) for sign in (1, -1)])
    return float(np.exp(log_z.min() - log_z.max()))


def isoscore(vectors: Any) -> float:
    """How evenly variance is spread over dimensions, 0 to 1: 1 if evenly, 0 if in one dimension.

    Invariant to mean, scale and rotation. Fewer vectors than dimensions cannot fill them, so
    compare equal numbers. Raises ShapeError for 1 dimension, DataError if all vectors are equal.
    Rudman et al. 2022, arXiv:2108.07344, Algorithm 1.

    >>> round(isoscore([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 4)  # variances 4 : 1
    0.4706
    """
    vectors_NE = matrix("isoscore", vectors)
    n = vectors_NE.shape[1]
    if n < 2:
        raise ShapeError("isoscore: expected vectors of at least 2 dimensions, got 1")
    _not_all_equal("isoscore", vectors_NE)
    # Variances along the principal components: the diagonal of the covariance after PCA.
    variances_E = np.linalg.eigvalsh(_gram(vectors_NE, vectors_NE.mean(axis=0, dtype=np.float64)))
    normalized_E = np.sqrt(n) * variances_E / np.linalg.norm(variances_E)
    defect = np.linalg.norm(normalized_E - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    utilized = (n - defect**2 * (n - np.sqrt(n))) ** 2 / n**2  # share of dimensions in use
    return float(np.clip((n * utilized - 1) / (n - 1), 0, 1))


def effective_rank(vectors: Any, *, center: bool = False) -> float:
    """Exponential of the entropy of the normalised singular values, 1 to min(N, E).

    The number of dimensions in effective use. `center` subtracts the mean first. Raises DataError
    if all vectors are 0, or, with `center`, equal. Roy and Vetterli 2007, EUSIPCO.

    >>> round(effective_rank([[1.0, 0.0], [0.0, 1.0]]), 4), round(effective_rank([[1.0, 1.0]]), 4)
    (2.0, 1.0)
    """
    vectors_NE = matrix("effective_rank", vectors, at_least=1)
    mean_E = vectors_NE.mean(axis=0, dtype=np.float64) if center else 0.0
    if center:
        _not_all_equal("effective_rank", vectors_NE)
    triangle: np.ndarray = np.empty((0, vectors_NE.shape[1]))
    for rows in _blocks(len(vectors_NE)):  # QR block by block keeps the singular values
        stacked = np.vstack([triangle, vectors_NE[rows] - mean_E])
        triangle = np.asarray(np.linalg.qr(stacked, mode="r"))
    values = np.linalg.svd(triangle, compute_uv=False)
    if not values.any():
        raise DataError("effective_rank: all vectors are 0")
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def cluster_isotropy(
    vectors: Any,
    clusters: Labels,
    measure: Callable[[Any], float] = isoscore,
) -> float:
    """A measure of isotropy of each centred cluster, averaged with the clusters' sizes as weights.

    Vectors in a few tight groups look anisotropic as a whole and may be isotropic within each.
    `clusters` has a label per vector; `measure` is `isoscore`, `isotropy`, `mean_cosine` or another
    function of [N, E]. A cluster of equal vectors is left out; DataError if all are left out.
    Cai et al. 2021, "Isotropy in the Contextual Embedding Space: Clusters and Manifolds", ICLR.

    >>> tight = [[9.0, 1.0], [9.0, -1.0], [10.0, 0.0], [8.0, 0.0]]
    >>> round(isoscore(tight + [[-x, y] for x, y in tight]), 2)
    0.01
    >>> round(cluster_isotropy(tight + [[-x, y] for x, y in tight], [0] * 4 + [1] * 4), 2)
    1.0
    """
    vectors_NE, labels = matrix("cluster_isotropy", vectors), classes("cluster_isotropy", clusters)
    if len(labels) != len(vectors_NE):
        raise ShapeError(
            f"cluster_isotropy: {len(vectors_NE)} vectors, {len(labels)} clusters; give each "
            "vector a label"
        )
    members: dict[Any, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    total = weight = 0.0
    for rows in members.values():
        inside = vectors_NE[rows]
        if (inside != inside[0]).any():
            total += len(rows) * measure(inside - inside.mean(axis=0, dtype=np.float64))
            weight += len(rows)
    if not weight:
        raise DataError(
            f"cluster_isotropy: none of {len(members)} clusters has two different vectors"
        )
    return total / weight


def _not_all_equal(what: str, vectors_NE: np.ndarray) -> None:
    if all((vectors_NE[rows] == vectors_NE[0]).all() for rows in _blocks(len(vectors_NE))):
        raise DataError(f"{what}: all {len(vectors_NE)} vectors are equal")


def _blocks(num: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, num, BLOCK))


def _gram(vectors_NE: np.ndarray, mean_E: np.ndarray | float = 0.0) -> np.ndarray:
    """V'V of the vectors minus a mean, [E, E], in float64."""
    gram_EE = np.zeros((vectors_NE.shape[1],) * 2)
    for rows in _blocks(len(vectors_NE)):
        block = vectors_NE[rows] - np.asarray(mean_E, np.float64)
        gram_EE += block.T @ block
    return gram_EE
