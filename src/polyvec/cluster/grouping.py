"""Texts, their vectors and their groups, as feedback gets and returns them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyvec.errors import InputError


@dataclass(frozen=True, slots=True)
class Grouping:
    """A state of a clustering.

    texts: as they were given. vectors_NE: float32, what the groups are made of. labels_N: the group
    of each text, from 0, or -1. algorithm: vectors and a seed to labels. days_N: when each text was
    written, in days, if that is known.
    """

    texts: Sequence[str]
    vectors_NE: np.ndarray
    labels_N: np.ndarray
    algorithm: Callable[[np.ndarray, int], np.ndarray]
    seed: int = 0
    days_N: np.ndarray | None = None

    @property
    def num_groups(self) -> int:
        return int(self.labels_N.max(initial=-1)) + 1

    def draw(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def again(self, vectors_NE: np.ndarray) -> "Grouping":
        """Grouped by the algorithm from new vectors."""
        labels_N = numbered(self.algorithm(vectors_NE, self.seed))
        return dataclasses.replace(self, vectors_NE=vectors_NE, labels_N=labels_N)

    def regrouped(self, labels_N: np.ndarray) -> "Grouping":
        """With other groups of the same vectors."""
        return dataclasses.replace(self, labels_N=numbered(labels_N))


@dataclass(frozen=True, slots=True)
class Tools:
    """What feedback may use beside the language model.

    embed: texts to vectors, of the current embedder. tune: trains the embedder on rows of anchor,
    positive and negatives and gives the `embed` of the trained one; None if it cannot be trained.
    """

    embed: Callable[[Sequence[str]], np.ndarray] | None = None
    tune: Callable[[list[dict[str, Any]], Mapping[str, Any]], "Tools"] | None = None

    def embedded(self, texts: Sequence[str], what: str) -> np.ndarray:
        if self.embed is None:
            raise InputError(
                f"feedback {what!r} embeds what the language model writes; give an embedder, not "
                "vectors alone"
            )
        return unit(self.embed(list(texts)))


def unit(vectors_NE: np.ndarray) -> np.ndarray:
    """The vectors with length 1, float32; zeros stay."""
    found = np.asarray(vectors_NE, np.float32)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(lengths > 0, lengths, 1)


def numbered(labels_N: np.ndarray) -> np.ndarray:
    """Groups numbered from 0 without gaps, the largest first; -1 stays."""
    found = np.asarray(labels_N, np.int64)
    names, counts = np.unique(found[found >= 0], return_counts=True)
    place = {int(names[i]): rank for rank, i in enumerate(np.argsort(-counts, kind="stable"))}
    return np.array([place.get(int(each), -1) for each in found], np.int64)
