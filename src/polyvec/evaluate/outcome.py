"""What a protocol is given, and what it finds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

Statistic = Callable[[np.ndarray], float]


class Encoder(Protocol):
    """A model as the protocols see it: texts in, float32 vectors [N, E] out.

    `role` is "query" or "document" where the task has sides, else None; which prompt that means
    is the model's business. `instruction` is one that the data brings for these texts.
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
    """One thing that was scored, for slices and for a person to look at.

    `value` is what it got: a query's nDCG@10, a pair's similarity, the share of runs in which a
    text was classified right. `gold` is what the data says (a score, a label), `found` what the
    model put first: (id, text, score, grade).
    """

    id: str
    texts: tuple[str, ...]
    value: float
    gold: str | float | None = None
    found: tuple[tuple[str, str, float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Scores of one task, as fractions, and what they were made of.

    `paired` is [N, ...]: a row an item, its first number the model's; `statistic` makes the
    main score of it, so that two models can be compared item by item (significance.compare).
    Tasks whose score is not made of items leave both out. `similarities` are groups of the
    model's similarities for histograms, such as {"relevant": ..., "other": ...}.
    """

    kind: str
    main_measure: str
    scores: dict[str, float]
    items: tuple[Item, ...] = ()
    paired: np.ndarray | None = None
    statistic: Statistic | None = None
    similarities: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def main_score(self) -> float:
        return self.scores[self.main_measure]
