"""Algorithms: vectors to a group for each, by scikit-learn. N texts, E dimensions, K groups.

Groups are numbered from 0; -1 is a text that no group takes (HDBSCAN). To add an algorithm: a
frozen dataclass whose fields are its settings, and its line in ALGORITHMS.
"""

import abc
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from polyvec.cluster.ranges import COUNT, Ranges, check_ranges
from polyvec.errors import InputError, SettingsError
from polyvec.evaluate.measures.inputs import extra
from polyvec.registry import Registry

MINI_BATCH_ABOVE = 20_000  # texts; whole passes of k-means take minutes beyond
PAIRWISE_UP_TO = 20_000  # texts whose matrix of distances fits in a few gigabytes


class Algorithm(abc.ABC):
    """Groups vectors."""

    RANGES: ClassVar[Ranges] = {}

    def __post_init__(self) -> None:
        check_ranges(self, self.RANGES, f"method {type(self).__name__.lower()!r}")

    @property
    def needs_k(self) -> bool:
        """Whether the number of groups must be given; else the algorithm finds it."""
        return True

    @abc.abstractmethod
    def labels(self, vectors_NE: np.ndarray, k: int | None, seed: int) -> np.ndarray:
        """The group of each, int64 [N]. SettingsError for a k that it cannot use."""


@dataclass(frozen=True, slots=True)
class KMeans(Algorithm):
    """K-means; with mini-batches (Sculley 2010) for more than 20,000 texts, in bounded memory."""

    RANGES: ClassVar[Ranges] = {"n_init": COUNT}

    n_init: int = 5

    def labels(self, vectors_NE: np.ndarray, k: int | None, seed: int) -> np.ndarray:
        num = _needed("kmeans", k)
        cluster = extra("sklearn.cluster", "clustering")
        if len(vectors_NE) <= MINI_BATCH_ABOVE:
            model = cluster.KMeans(num, n_init=self.n_init, random_state=seed)
        else:
            model = cluster.MiniBatchKMeans(
                num, batch_size=4096, n_init=self.n_init, random_state=seed, max_no_improvement=20
            )
        return _fitted(model, vectors_NE)


@dataclass(frozen=True, slots=True)
class Agglomerative(Algorithm):
    """Merges the two nearest groups until K are left or, without k, until they are `distance`
    apart."""

    RANGES: ClassVar[Ranges] = {"distance": (0, math.inf)}

    linkage: Literal["ward", "average", "complete", "single"] = "ward"
    distance: float | None = None

    @property
    def needs_k(self) -> bool:
        return self.distance is None

    def labels(self, vectors_NE: np.ndarray, k: int | None, seed: int) -> np.ndarray:
        if self.distance is not None and k is not None:
            raise SettingsError(
                f"agglomerative: distance {self.distance} finds the number of groups, so k {k} has "
                "no effect; leave one of them out"
            )
        num = None if self.distance is not None else _needed("agglomerative", k)
        _check_size("agglomerative", vectors_NE)
        model = extra("sklearn.cluster", "clustering").AgglomerativeClustering(
            n_clusters=num,
            linkage=self.linkage,
            distance_threshold=self.distance if num is None else None,
        )
        return _fitted(model, vectors_NE)


@dataclass(frozen=True, slots=True)
class Hdbscan(Algorithm):
    """HDBSCAN (Campello et al. 2013): finds the number of groups; -1 for texts in none."""

    RANGES: ClassVar[Ranges] = {"min_cluster_size": (2, math.inf), "min_samples": COUNT}

    min_cluster_size: int = 5
    min_samples: int | None = None

    @property
    def needs_k(self) -> bool:
        return False

    def labels(self, vectors_NE: np.ndarray, k: int | None, seed: int) -> np.ndarray:
        if k is not None:
            raise SettingsError(
                f"hdbscan finds the number of groups itself, so k {k} has no effect; leave it "
                "out, or set min_cluster_size"
            )
        _check_size("hdbscan", vectors_NE)
        least = max(self.min_cluster_size, self.min_samples or 0)
        if least > len(vectors_NE):
            raise InputError(
                f"hdbscan needs at least {least} texts (min_cluster_size), got {len(vectors_NE)}"
            )
        model = extra("sklearn.cluster", "clustering").HDBSCAN(
            min_cluster_size=self.min_cluster_size, min_samples=self.min_samples, copy=True
        )
        return _fitted(model, vectors_NE)


@dataclass(frozen=True, slots=True)
class Spectral(Algorithm):
    """Spectral clustering (Ng, Jordan and Weiss 2001) of the graph of nearest neighbours."""

    RANGES: ClassVar[Ranges] = {"n_neighbors": COUNT}

    n_neighbors: int = 10

    def labels(self, vectors_NE: np.ndarray, k: int | None, seed: int) -> np.ndarray:
        num = _needed("spectral", k)
        _check_size("spectral", vectors_NE)
        model = extra("sklearn.cluster", "clustering").SpectralClustering(
            num,
            affinity="nearest_neighbors",
            n_neighbors=min(self.n_neighbors, len(vectors_NE)),
            random_state=seed,
        )
        return _fitted(model, vectors_NE)


ALGORITHMS: Registry[type[Algorithm]] = Registry(
    "method",
    {
        "kmeans": KMeans,
        "agglomerative": Agglomerative,
        "hdbscan": Hdbscan,
        "spectral": Spectral,
    },
    accepts=lambda part: isinstance(part, type) and issubclass(part, Algorithm),
    expected="a subclass of Algorithm",
    elsewhere={"peaks": "polyvec.cluster.events:Peaks"},
)


def _fitted(model: Any, vectors_NE: np.ndarray) -> np.ndarray:
    return np.asarray(model.fit_predict(vectors_NE), np.int64)


def _needed(name: str, k: int | None) -> int:
    if k is None:
        raise SettingsError(f"{name} needs k, the number of groups: a number, or auto")
    return k


def _check_size(name: str, vectors_NE: np.ndarray) -> None:
    if len(vectors_NE) > PAIRWISE_UP_TO:
        raise InputError(
            f"{name} compares all pairs of texts, and {len(vectors_NE):,} are more than "
            f"{PAIRWISE_UP_TO:,}; use kmeans"
        )
