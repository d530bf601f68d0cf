"""A fitted defence: the directions are removed from which words are read best.

N vectors, E their size, V words, K removed directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from polyvec.errors import InputError, SettingsError, ShapeError
from polyvec.evaluate.measures.inputs import matrix, unit
from polyvec.invert.defences import Defence
from polyvec.invert.probes import word_table

RIDGE = 1e-6  # of the largest variance: vectors of equal length lie near a hyperplane
MIN_COUNT, MAX_WORDS = 5, 2000


@dataclass
class WordProjection(Defence):
    """Vectors without their `remove` most telling directions.

    Directions are those in which whitened vectors vary most with content words; with as many as
    there are words, no linear classifier reads any of these better than by its frequency (LEACE,
    Belrose et al. 2023, arXiv:2306.03819).
    """

    remove: int = 32
    _mean_E: np.ndarray | None = field(default=None, repr=False, init=False)
    _erase_EE: np.ndarray | None = field(default=None, repr=False, init=False)

    def __post_init__(self) -> None:
        if self.remove < 1:
            raise SettingsError(f"remove is {self.remove}, expected at least 1")

    def fit(self, vectors: np.ndarray, texts: Sequence[str] | None = None) -> Self:
        if texts is None or len(texts) != len(vectors):
            raise ShapeError("defence 'projection' is fitted on vectors and their texts")
        vectors_NE = unit("vectors", matrix("vectors", vectors)).astype(np.float64)
        if self.remove >= vectors_NE.shape[1]:
            raise ShapeError(
                f"projection: {self.remove} removed of {vectors_NE.shape[1]} directions: none left"
            )
        _, there_NV = word_table(texts, min_count=MIN_COUNT, max_words=MAX_WORDS)
        self._mean_E = vectors_NE.mean(0)
        x_NE, z_NV = vectors_NE - self._mean_E, there_NV - there_NV.mean(0)
        values_E, basis_EE = np.linalg.eigh(x_NE.T @ x_NE / len(x_NE))
        roots_E = np.sqrt(np.maximum(values_E, RIDGE * values_E[-1]))
        white_EE, colour_EE = ((basis_EE * s) @ basis_EE.T for s in (1 / roots_E, roots_E))
        telling, _, _ = np.linalg.svd(white_EE @ (x_NE.T @ z_NV) / len(x_NE), full_matrices=False)
        top_EK = telling[:, : self.remove]
        self._erase_EE = white_EE @ top_EK @ top_EK.T @ colour_EE
        return self

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        if self._erase_EE is None or self._mean_E is None:
            raise InputError("defence 'projection' is not fitted yet; call fit first")
        if vectors_NE.shape[1] != len(self._mean_E):
            raise ShapeError(
                f"projection: fitted on {len(self._mean_E)} dimensions, the vectors have "
                f"{vectors_NE.shape[1]}"
            )
        return vectors_NE - (vectors_NE - self._mean_E) @ self._erase_EE
