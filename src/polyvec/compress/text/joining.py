"""The text of the units that are kept. U units."""

import numpy as np

from polyvec.compress.text.document import Document
from polyvec.compress.text.units import SEPARATORS, Span, Strengths


class Joiner:
    """Joins kept units of a document: neighbours as they stood, others with a separator.

    The separator is nothing inside of a word, else a space, a line break or an empty line: the
    strongest that was dropped.
    """

    def __init__(self, document: Document) -> None:
        self.text = document.text
        self.starts = np.array([start for start, _ in document.units], np.int64)
        self.ends = np.array([end for _, end in document.units], np.int64)
        strengths, following = Strengths(self.text), np.append(self.starts[1:], len(self.text))
        # Of what follows a unit, and of the unit with what follows it.
        self.after = strengths.of(self.ends, following)
        self.whole = strengths.of(self.starts, following)

    def runs(self, kept_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last unit of each run of neighbours that are kept."""
        padded = np.concatenate([[False], kept_U, [False]]).astype(np.int8)
        edges = np.diff(padded)
        return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1

    def spans(self, kept_U: np.ndarray) -> tuple[Span, ...]:
        """The runs as spans of the text."""
        first, last = self.runs(kept_U)
        return tuple(zip(self.starts[first].tolist(), self.ends[last].tolist(), strict=True))

    def join(self, kept_U: np.ndarray) -> str:
        return "".join(piece for piece, _ in self.pieces(kept_U))

    def pieces(self, kept_U: np.ndarray) -> list[tuple[str, int]]:
        """Runs with their places in the text, and the separators between them with -1."""
        first, last = self.runs(kept_U)
        if not len(first):
            return []
        starts, ends = self.starts[first].tolist(), self.ends[last].tolist()
        gaps = self.after[last[:-1]]
        if len(gaps):  # what follows the first of two runs, and all units that were dropped
            dropped = np.maximum.reduceat(
                self.whole, np.stack([last[:-1] + 1, first[1:]], 1).ravel()
            )
            gaps = np.maximum(gaps, dropped[::2])
        found = []
        for start, end, between in zip(starts, ends, [*gaps.tolist(), 0], strict=True):
            found += [(self.text[start:end], start), (SEPARATORS[between], -1)]
        return found[:-1]
