"""What is left of a text after a first stage, with the place of each character in the original."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyvec.compress.text.document import Document
from polyvec.compress.text.joining import Joiner
from polyvec.compress.text.units import Span, stripped


@dataclass(frozen=True, slots=True)
class View:
    """A text, its passages, and where each character was in the original, -1 for a separator."""

    text: str
    passages: tuple[Span, ...]
    origin_C: np.ndarray

    @classmethod
    def whole(cls, texts: Sequence[str], separator: str) -> "View":
        """All of the texts, each a passage."""
        text, spans, start = separator.join(texts), [], 0
        for each in texts:
            spans.append((start, start + len(each)))
            start += len(each) + len(separator)
        return cls(text, tuple(stripped(text, spans)), np.arange(len(text)))

    def narrowed(self, document: Document, kept_U: np.ndarray) -> "View":
        """The text of some units of it alone."""
        pieces = Joiner(document).pieces(kept_U)
        own = [np.arange(a, a + len(p)) if a >= 0 else np.full(len(p), -1) for p, a in pieces]
        own_C = np.concatenate([np.zeros(0, np.int64), *own])
        starts = [start for start, _ in self.passages]
        passage_C = np.where(own_C < 0, -1, np.searchsorted(starts, own_C, side="right") - 1)
        passages = []
        for number in np.unique(passage_C[passage_C >= 0]).tolist():
            places = np.flatnonzero(passage_C == number)
            passages.append((int(places[0]), int(places[-1]) + 1))
        origin_C = np.where(own_C < 0, -1, self.origin_C[own_C])
        return View("".join(piece for piece, _ in pieces), tuple(passages), origin_C)

    def spans_in_original(self, spans: Sequence[Span]) -> tuple[Span, ...]:
        """Spans of this text as spans of the original."""
        if len(self.origin_C) and (self.origin_C[0], self.origin_C[-1]) == (0, len(self.text) - 1):
            return tuple(spans)  # nothing was narrowed
        found: list[Span] = []
        for start, end in spans:
            origin = self.origin_C[start:end]
            origin = origin[origin >= 0]
            breaks = np.flatnonzero(np.diff(origin) != 1) + 1
            found += [(int(run[0]), int(run[-1]) + 1) for run in np.split(origin, breaks)]
        return tuple(found)
