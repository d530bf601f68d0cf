"""What a protocol gets, an encoder, and what it returns, an outcome."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

Statistic = Callable[[np.ndarray], float]


class Encoder(Protocol):
    """A model as the protocols see it: texts in, float32 vectors [N, E] out.

    `role` is "query" or "document" if the task has sides, else None; the model decides which
    prompt that means. `instruction` is one that the data gives for these texts.
    """

    def encode(
        self, texts: Sequence[str], role: str | None = None, instruction: str | None = None
    ) -> np.ndarray: ...

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The model's own similarity of each a with each b, [N, M]."""
        ...

    def similarity_pairwise(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The model's own similarity of row with row, [N]."""
        ...

    @property
    def similarity_name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Item:
    """One scored item, for slices and for inspection.

    `value` is its score: the nDCG@10 of a query, the similarity of a pair, the fraction of runs
    that classify a text correctly. `gold` is the reference (a score, a label), `found` what the
    model ranks first: (id, text, score, grade).
    """

    id: str
    texts: tuple[str, ...]
    value: float
    gold: str | float | None = None
    found: tuple[tuple[str, str, float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Scores of one task, as fractions, and what they were computed from.

    `paired` is [N, ...]: one row per item, whose first column is the model's value; `statistic`
    computes the main score from it, so that two models can be compared item by item
    (significance.compare). Both are None for tasks whose score is not a statistic of items.
    `similarities` are groups of the model's similarities for histograms, such as
    {"relevant": ..., "other": ...}. `notes` say what a reader of the score must know of the data.
    """

    kind: str
    main_measure: str
    scores: dict[str, float]
    items: tuple[Item, ...] = ()
    paired: np.ndarray | None = None
    statistic: Statistic | None = None
    similarities: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def main_score(self) -> float:
        return self.scores[self.main_measure]
