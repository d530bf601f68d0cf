"""Which texts, or pairs of texts, are worth a question. N texts, E dimensions, K groups.

Each ranking is a function of vectors and groups that gives the numbers of texts, the most uncertain
first. To add one, write it and its line in RANKINGS.
"""

from collections.abc import Callable

import numpy as np

from polyvec.evaluate.measures.inputs import extra
from polyvec.registry import Registry

Ranking = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
NEIGHBOURS = 50  # LOOP's
BLOCK = 2048  # texts whose distances to all groups are held at a time


def centroids(vectors_NE: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """The mean of each group, [K, E]; texts in no group count for none."""
    num = int(labels_N.max(initial=-1)) + 1
    sums_KE = np.zeros((num, vectors_NE.shape[1]), np.float64)
    taken = labels_N >= 0
    np.add.at(sums_KE, labels_N[taken], vectors_NE[taken])
    counts_K = np.bincount(labels_N[taken], minlength=num)
    return (sums_KE / np.maximum(counts_K, 1)[:, None]).astype(np.float32)


def nearest_groups(
    vectors_NE: np.ndarray, centers_KE: np.ndarray, num: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest groups of each text and the Student-t weights of them, [N, M] each.

    A weight is 1 / (1 + squared distance), normalised over these groups.
    """
    num = min(num, len(centers_KE))
    found, weights = [], []
    for start in range(0, len(vectors_NE), BLOCK):
        part = vectors_NE[start : start + BLOCK]
        squared = (part**2).sum(1)[:, None] - 2 * part @ centers_KE.T + (centers_KE**2).sum(1)[None]
        order = np.argsort(squared, axis=1, kind="stable")[:, :num]
        near = np.maximum(np.take_along_axis(squared, order, 1), 0.0)
        weight = 1 / (1 + near)
        found.append(order)
        weights.append(weight / weight.sum(1, keepdims=True))
    return np.concatenate(found), np.concatenate(weights)


def entropy(vectors_NE: np.ndarray, labels_N: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """By the entropy of the Student-t weights of the nearest 2 % of the groups, at least two.

    ClusterLLM (Zhang et al. 2023, arXiv:2305.14871).
    """
    centers = centroids(vectors_NE, labels_N)
    _, weights_NM = nearest_groups(vectors_NE, centers, max(2, round(0.02 * len(centers))))
    return _largest(-(weights_NM * np.log(weights_NM)).sum(1))


def margin(vectors_NE: np.ndarray, labels_N: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """By the difference of the distances to the two nearest groups, the smallest first."""
    centers_KE = centroids(vectors_NE, labels_N)
    if len(centers_KE) < 2:
        return np.arange(len(vectors_NE))
    near_N2, _ = nearest_groups(vectors_NE, centers_KE, 2)
    first, second = (
        np.linalg.norm(vectors_NE - centers_KE[near_N2[:, place]], axis=1) for place in (0, 1)
    )
    return _largest(first - second)


def disagreement(
    vectors_NE: np.ndarray, labels_N: np.ndarray, draw: np.random.Generator
) -> np.ndarray:
    """By the share of the 50 nearest texts that are in another group."""
    near_NT = neighbours(vectors_NE, NEIGHBOURS)
    return _largest((labels_N[near_NT] != labels_N[:, None]).mean(1))


def boundary(vectors_NE: np.ndarray, labels_N: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Among the most uncertain by entropy and by neighbours alike: by the worse of both places.

    LOOP takes what is in the first 500 of both (An et al. 2024, arXiv:2312.10897).
    """
    places = np.zeros(len(vectors_NE), np.int64)
    for ranking in (entropy, disagreement):
        order = ranking(vectors_NE, labels_N, draw)
        own = np.empty_like(order)
        own[order] = np.arange(len(order))
        places = np.maximum(places, own)
    return np.argsort(places, kind="stable")


def at_random(
    vectors_NE: np.ndarray, labels_N: np.ndarray, draw: np.random.Generator
) -> np.ndarray:
    """In any order: what the others must beat."""
    return draw.permutation(len(vectors_NE))


RANKINGS: Registry[Ranking] = Registry(
    "selection",
    {
        "entropy": entropy,
        "margin": margin,
        "disagreement": disagreement,
        "boundary": boundary,
        "random": at_random,
    },
)


def neighbours(vectors_NE: np.ndarray, num: int) -> np.ndarray:
    """The nearest other texts of each, [N, T], the nearest first."""
    num = min(num, len(vectors_NE) - 1)
    model = extra("sklearn.neighbors", "clustering").NearestNeighbors(n_neighbors=num + 1)
    found_NT = model.fit(vectors_NE).kneighbors(vectors_NE, return_distance=False)
    # Of equal texts another one may stand in the first place.
    others = [row[row != number][:num] for number, row in enumerate(found_NT)]
    return np.array(others, np.int64).reshape(len(vectors_NE), num)


def closest_pairs(vectors_NE: np.ndarray, num: int) -> np.ndarray:
    """The closest pairs of texts, [P, 2], the closest first; each pair once."""
    size = max(1, min(len(vectors_NE) - 1, 2 * num // len(vectors_NE) + 10))
    model = extra("sklearn.neighbors", "clustering").NearestNeighbors(n_neighbors=size + 1)
    distances, found = model.fit(vectors_NE).kneighbors(vectors_NE)
    pairs: dict[tuple[int, int], float] = {}
    for number, (row, far) in enumerate(zip(found.tolist(), distances.tolist(), strict=True)):
        for other, distance in zip(row, far, strict=True):
            if other != number:
                pairs.setdefault((min(number, other), max(number, other)), distance)
    order = sorted(pairs, key=lambda pair: (pairs[pair], pair))[:num]
    return np.array(order, np.int64).reshape(-1, 2)


def prototypes(vectors_NE: np.ndarray, labels_N: np.ndarray, num: int = 1) -> list[np.ndarray]:
    """The texts of each group that are nearest to its mean, the nearest first."""
    centers = centroids(vectors_NE, labels_N)
    found = []
    for group, center in enumerate(centers):
        members = np.flatnonzero(labels_N == group)
        far = ((vectors_NE[members] - center) ** 2).sum(1)
        found.append(members[np.argsort(far, kind="stable")[:num]])
    return found


def _largest(values_N: np.ndarray) -> np.ndarray:
    return np.argsort(-values_N, kind="stable")
