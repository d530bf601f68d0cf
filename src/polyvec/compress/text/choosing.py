"""Which units of a document are kept under a budget, and the text that they make. U units."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polyvec.compress.text.budget import select
from polyvec.compress.text.document import Document
from polyvec.compress.text.joining import Joiner
from polyvec.compress.text.tokens import TokenCounter
from polyvec.compress.text.units import UNITS, Span, divided


@dataclass(frozen=True, slots=True)
class Chosen:
    """The units that are kept, the text that they make and its tokens."""

    document: Document
    kept_U: np.ndarray
    text: str
    cost: int

    @property
    def spans(self) -> tuple[Span, ...]:
        return Joiner(self.document).spans(self.kept_U)


@dataclass(frozen=True, slots=True)
class Chooser:
    """Chooses units for at most `tokens` tokens of `counter`.

    order: numbers of the passages as they come out, between separators; None: as they are.
    """

    counter: TokenCounter
    tokens: int
    order: np.ndarray | None
    separator: str

    def writer(self, document: Document) -> Callable[[np.ndarray], str]:
        """The text of kept units, as a function of them."""
        joiner, order = Joiner(document), self.order
        if order is None:
            return joiner.join
        passage_U = document.passage_of_units()

        def write(kept_U: np.ndarray) -> str:
            found = [joiner.join(kept_U & (passage_U == each)) for each in order]
            return self.separator.join(each for each in found if each)

        return write

    def choose(
        self,
        document: Document,
        scores_U: np.ndarray,
        forced_U: np.ndarray | None,
        allowed_U: np.ndarray,
        *,
        exchange: bool,
    ) -> Chosen:
        write = self.writer(document)
        costs_U = self.counter.costs(document.text, document.units)

        def count(kept_U: np.ndarray) -> int:
            return self.counter.count(write(kept_U))

        kept_U = select(
            scores_U, costs_U, self.tokens, count, forced_U, allowed_U, exchange=exchange
        )
        text = write(kept_U)
        return Chosen(document, kept_U, text, self.counter.count(text))

    def filled(self, chosen: Chosen, scores_U: np.ndarray, allowed_U: np.ndarray) -> Chosen:
        """With the first words, or tokens, of the next best allowed units in the room that is left.

        Words beside the kept units; if that leaves room, tokens; then tokens in place of some of
        those of the kept units.
        """
        best = chosen
        if (chosen.kept_U | ~allowed_U).all():
            return best
        for unit, whole in (("word", True), ("token", True), ("token", False)):
            if best.cost >= self.tokens or (unit == "token" and not self.counter.has_offsets):
                break
            found = self._with_parts(chosen, scores_U, allowed_U, unit, whole)
            best = found if found.cost > best.cost else best
        return best

    def _with_parts(
        self, chosen: Chosen, scores_U: np.ndarray, allowed_U: np.ndarray, unit: str, whole: bool
    ) -> Chosen:
        """Parts of dropped units beside kept ones, which stay whole, or nearly."""
        document = chosen.document
        parts = self.parts(document, unit)
        starts = [start for start, _ in document.units]
        owner_P = np.searchsorted(starts, [start for start, _ in parts], side="right") - 1
        kept_P = chosen.kept_U[owner_P]
        scores_P = scores_U[owner_P] + np.where(kept_P, np.ptp(scores_U) + 1.0, 0.0)
        return self.choose(
            Document(document.text, document.passages, tuple(parts)),
            scores_P,
            kept_P if whole else None,
            allowed_U[owner_P] | kept_P,
            exchange=True,
        )

    def parts(self, document: Document, unit: str) -> list[Span]:
        """The units in smaller ones."""
        if unit == "token":
            return within(self.counter.spans(document.text), document.units)
        return divided(document.text, document.units, UNITS[unit])


def within(spans: list[Span], parts: tuple[Span, ...]) -> list[Span]:
    """The spans that lie in one of the parts; what reaches beyond it is cut."""
    found: list[Span] = []
    at = 0
    for start, end in spans:
        while at < len(parts) and parts[at][1] <= start:
            at += 1
        if at < len(parts) and end > parts[at][0]:
            found.append((max(start, parts[at][0]), min(end, parts[at][1])))
    return found
