"""Encoders whose vectors follow from the words, for the tests of the protocols."""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from polyvec.embed.projection.similarity import similarity_matrix, similarity_pairs


class Toy:
    """Any function from a text to a vector as an encoder; it writes down how it was called."""

    def __init__(self, vector: Callable[[str], np.ndarray], similarity: str = "cosine") -> None:
        self.vector = vector
        self.similarity_name = similarity
        self.calls: list[tuple[str | None, str | None, int]] = []

    def read(self, text: str, role: str | None, instruction: str | None) -> str:
        """What is embedded: the text followed by the instruction, as in MTEB."""
        return text if instruction is None else f"{text} {instruction}"

    def encode(
        self, texts: Sequence[str], role: str | None = None, instruction: str | None = None
    ) -> np.ndarray:
        self.calls.append((role, instruction, len(texts)))
        rows = [self.vector(self.read(text, role, instruction)) for text in texts]
        return np.asarray(rows, np.float32)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        found = similarity_matrix(torch.from_numpy(a), torch.from_numpy(b), self.similarity_name)
        return found.numpy()

    def similarity_pairwise(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        found = similarity_pairs(torch.from_numpy(a), torch.from_numpy(b), self.similarity_name)
        return found.numpy()


class Bag(Toy):
    """Sum of random vectors of the words; a role is one more word.

    Whole numbers ("dot") make sums exact: equal scores are equal on every machine.
    """

    def __init__(self, similarity: str = "cosine", dimension: int = 24) -> None:
        super().__init__(self.summed, similarity)
        self.dimension = dimension
        self.words: dict[str, np.ndarray] = {}

    def read(self, text: str, role: str | None, instruction: str | None) -> str:
        return f"{role or 'neither'}: {super().read(text, role, instruction)}"

    def summed(self, text: str) -> np.ndarray:
        return np.sum([self.word(word) for word in text.split()], axis=0)

    def word(self, word: str) -> np.ndarray:
        if word not in self.words:
            draw = np.random.default_rng(zlib.crc32(word.encode()))
            whole = draw.integers(-1, 2, self.dimension)
            real = draw.standard_normal(self.dimension)
            self.words[word] = whole if self.similarity_name == "dot" else real
        return self.words[word]


def plane(degrees: float) -> np.ndarray:
    """A unit vector of two dimensions at an angle."""
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


def at_angles(text: str) -> np.ndarray:
    """The text is its own angle: "30" or "30 whatever"."""
    return plane(float(text.split()[0]))
