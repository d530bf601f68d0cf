"""The rotation between two spaces of vectors whose texts differ: mini-vec2vec.

Linear and without pairs (Dar 2025, arXiv:2510.02348): clusters of one space are matched to those
of the other by how similar they are among themselves, points by their similarities to matched
clusters, and a rotation is fitted and refined. N and M points, K clusters, P anchors.
"""

import numpy as np

from polyvec.errors import DataError
from polyvec.evaluate.measures.inputs import extra, unit
from polyvec.settings import check_seed


def match(
    source_NA: np.ndarray,
    target_MB: np.ndarray,
    *,
    num_clusters: int = 20,
    rounds: int = 30,
    restarts: int = 30,
    sample: int = 10_000,
    neighbours: int = 50,
    refinements: int = 100,
    refine_sample: int = 1000,
    final_clusters: int = 500,
    seed: int = 0,
) -> np.ndarray:
    """W [A, B] with orthonormal rows or columns, of centred vectors.

    The defaults are those of the authors' code. Raises DataError for fewer points than clusters.
    """
    check_seed(seed)
    draw = np.random.default_rng(seed)
    a_NA, b_MB = unit("source", source_NA), unit("target", target_MB)
    few = min(len(a_NA), len(b_MB))
    if few < 2 * num_clusters:
        raise DataError(f"{few} vectors are too few for {num_clusters} clusters; give more")
    found = [
        _paired_centres(a_NA, b_MB, num_clusters, restarts, sample, draw) for _ in range(rounds)
    ]
    anchors_PA = unit("anchors", np.concatenate([a for a, _ in found]))
    anchors_PB = unit("anchors", np.concatenate([b for _, b in found]))
    # A point's similarities to the anchors mean the same in both spaces.
    profile_NP = _standard(a_NA @ anchors_PA.T)
    profile_MP = _standard(b_MB @ anchors_PB.T)
    near = min(neighbours, len(b_MB))
    weight_AB = rotation(a_NA, _mean_of_nearest(profile_NP, profile_MP, b_MB, near))
    for _ in range(refinements):
        rows = draw.permutation(len(a_NA))[:refine_sample]
        moved = unit("mapped", a_NA[rows] @ weight_AB)
        again = rotation(a_NA[rows], _mean_of_nearest(moved, b_MB, b_MB, near))
        left, _, right = np.linalg.svd((weight_AB + again) / 2, full_matrices=False)
        weight_AB = (left @ right).astype(a_NA.dtype)
    if final_clusters <= few // 2:
        weight_AB = _by_clusters(a_NA, b_MB, weight_AB, final_clusters, draw)
    return weight_AB


def _paired_centres(
    a_NA: np.ndarray,
    b_MB: np.ndarray,
    num_clusters: int,
    restarts: int,
    sample: int,
    draw: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Centres of both spaces, in the order in which their similarity matrices agree most."""
    quadratic_assignment = extra("scipy.optimize", "matching").quadratic_assignment
    centres = [
        _centres(points[draw.permutation(len(points))[:sample]], num_clusters, draw)
        for points in (a_NA, b_MB)
    ]
    a_KK, b_KK = (unit("centres", each) @ unit("centres", each).T for each in centres)
    best, order = -np.inf, np.arange(num_clusters)
    for _ in range(restarts):
        found = quadratic_assignment(
            a_KK,
            b_KK,
            method="2opt",
            options={"maximize": True, "rng": np.random.default_rng(draw.integers(2**32))},
        )
        if found.fun > best:
            best, order = found.fun, found.col_ind
    return centres[0], centres[1][order]


def _centres(points: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    kmeans = extra("sklearn.cluster", "matching").KMeans
    found = kmeans(count, n_init=1, max_iter=50, random_state=int(draw.integers(2**31)))
    return found.fit(points).cluster_centers_


def _standard(profile_NP: np.ndarray) -> np.ndarray:
    """Each row's similarities without their mean, of length 1."""
    return unit("profiles", profile_NP - profile_NP.mean(1, keepdims=True))


def _mean_of_nearest(
    queries_NP: np.ndarray, keys_MP: np.ndarray, values_MB: np.ndarray, near: int
) -> np.ndarray:
    """Of each query the mean of the values of its nearest keys, by dot product."""
    parts = []
    for start in range(0, len(queries_NP), 1024):
        scores = queries_NP[start : start + 1024] @ keys_MP.T
        rows = np.argpartition(-scores, near - 1, axis=1)[:, :near]
        parts.append(values_MB[rows].mean(1))
    return np.concatenate(parts)


def _by_clusters(
    a_NA: np.ndarray,
    b_MB: np.ndarray,
    weight_AB: np.ndarray,
    count: int,
    draw: np.random.Generator,
) -> np.ndarray:
    """The rotation between centres of the source and centres of the target that began there."""
    kmeans = extra("sklearn.cluster", "matching").KMeans
    centres_KA = _centres(a_NA, count, draw)
    moved = kmeans(count, init=centres_KA @ weight_AB, n_init=1, max_iter=50).fit(b_MB)
    return rotation(centres_KA, moved.cluster_centers_)


def rotation(source_NA: np.ndarray, target_NB: np.ndarray) -> np.ndarray:
    """W [A, B] with orthonormal rows or columns that minimises |X W - Y|."""
    product_AB = source_NA.T.astype(np.float64) @ target_NB
    left, _, right = np.linalg.svd(product_AB, full_matrices=False)
    return (left @ right).astype(source_NA.dtype)
