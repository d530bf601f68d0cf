"""Maps from one space of vectors to another: what a few leaked pairs, or none, give an attacker.

An inverter of one space becomes an inverter of another behind such a map (ALGEN, arXiv:2502.11308;
TEIA, arXiv:2406.10280), and undoes a secret rotation. N pairs, A and B the sizes of the spaces.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyvec.errors import DataError, SettingsError, ShapeError, known
from polyvec.evaluate.measures.inputs import extra, matrix, unit
from polyvec.invert.matching import match, rotation
from polyvec.settings import check_seed

Map = Callable[[np.ndarray], np.ndarray]
ALPHAS = tuple(10.0**power for power in range(-4, 4))


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """(x - mean_A) W + mean_B."""

    mean_A: np.ndarray
    weight_AB: np.ndarray
    mean_B: np.ndarray

    def __call__(self, vectors_NA: np.ndarray) -> np.ndarray:
        return (vectors_NA - self.mean_A) @ self.weight_AB + self.mean_B


def ridge(source_NA: np.ndarray, target_NB: np.ndarray, alphas: tuple[float, ...] = ALPHAS) -> Map:
    """Least squares with a penalty, which is chosen by leave-one-out among `alphas`.

    ALGEN's map, but for the penalty: with fewer pairs than dimensions, plain least squares fits
    them exactly and others not at all.
    """
    model = extra("sklearn.linear_model", "SpaceMap").RidgeCV(alphas=list(alphas))
    model.fit(source_NA, target_NB)
    return Affine(source_NA.mean(0), model.coef_.T, target_NB.mean(0))


def orthogonal(source_NA: np.ndarray, target_NB: np.ndarray, center: bool = True) -> Map:
    """The rotation, with reflection, that brings pairs nearest: Procrustes (Schoenemann 1966).

    Spaces of different sizes get orthonormal rows or columns. It undoes a secret rotation.
    """
    mean_A, mean_B = (
        each.mean(0) if center else np.zeros(each.shape[1], each.dtype)
        for each in (source_NA, target_NB)
    )
    return Affine(mean_A, rotation(source_NA - mean_A, target_NB - mean_B), mean_B)


def mlp(
    source_NA: np.ndarray,
    target_NB: np.ndarray,
    others_MA: np.ndarray | None = None,
    pairwise: float = 1.0,
    adversarial: float = 0.0,
    hidden: int = 512,
    steps: int = 300,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Map:
    """A ridge map and a multilayer perceptron beside it, trained on the pairs: TEIA's mapping.

    The loss is the squared error, plus `pairwise` times that of the similarities between pairs of
    texts, plus `adversarial` times the cross-entropy of a discriminator that should take mapped
    vectors of other texts (`others_MA`, whose targets nobody leaked) for targets.
    """
    from polyvec.invert.neural_map import train_map  # imports torch

    check_seed(seed)
    if adversarial and others_MA is None:
        raise SettingsError("adversarial needs others_MA, vectors of texts without targets")
    return train_map(
        ridge(source_NA, target_NB),
        source_NA,
        target_NB,
        others_MA,
        pairwise=pairwise,
        adversarial=adversarial,
        hidden=hidden,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
    )


def unpaired(source_NA: np.ndarray, target_MB: np.ndarray, **settings: Any) -> Map:
    """A rotation found without pairs, from vectors of different texts: mini-vec2vec.

    Settings are those of `matching.match`.
    """
    mean_A, mean_B = source_NA.mean(0), target_MB.mean(0)
    return Affine(mean_A, match(source_NA - mean_A, target_MB - mean_B, **settings), mean_B)


METHODS: Mapping[str, Callable[..., Map]] = {
    "mlp": mlp,
    "orthogonal": orthogonal,
    "ridge": ridge,
    "unpaired": unpaired,
}


class SpaceMap:
    """A fitted map; its vectors have length 1.

    >>> x = np.eye(4, dtype=np.float32)
    >>> SpaceMap.fit("orthogonal", x, x[:, ::-1]).transform(x[:1]).round(3).tolist()
    [[0.0, 0.0, 0.0, 1.0]]
    """

    def __init__(self, method: str, mapped: Map, in_features: int, out_features: int) -> None:
        self.method, self.mapped = method, mapped
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    def fit(
        cls, method: str, source: np.ndarray, target: np.ndarray, **settings: Any
    ) -> "SpaceMap":
        """Fit a method of METHODS on pairs: row i of both is the same text (not of "unpaired").

        Raises ShapeError for unequal numbers of vectors, DataError for fewer than 2.
        """
        if method not in METHODS:
            raise SettingsError(f"space map {method!r} is not known.{known(method, METHODS)}")
        source_NA, target_NB = matrix("source", source), matrix("target", target)
        if method != "unpaired" and len(source_NA) != len(target_NB):
            raise ShapeError(
                f"space map {method!r}: {len(source_NA)} source vectors, {len(target_NB)} target "
                "vectors; give pairs, or use method 'unpaired'"
            )
        found = METHODS[method](source_NA, target_NB, **settings)
        return cls(method, found, source_NA.shape[1], target_NB.shape[1])

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors of the source space in the target space, float32 [N, B] of length 1."""
        vectors_NA = matrix("vectors", vectors, at_least=1)
        if vectors_NA.shape[1] != self.in_features:
            raise ShapeError(
                f"the map takes vectors of {self.in_features} dimensions, got {vectors_NA.shape[1]}"
            )
        found_NB = self.mapped(vectors_NA).astype(np.float32)
        if not np.isfinite(found_NB).all():
            raise DataError(f"space map {self.method!r} gave vectors that are not finite")
        return unit("mapped vectors", found_NB)
