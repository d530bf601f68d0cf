"""What is compressed, and what comes out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import numpy as np

from polyvec.compress.text.units import Span, words


@dataclass(frozen=True, slots=True)
class Document:
    """A text, its passages and its units, all as spans; units are in order and do not overlap."""

    text: str
    passages: tuple[Span, ...]
    units: tuple[Span, ...]

    def pieces(self) -> list[str]:
        return [self.text[start:end] for start, end in self.units]

    def passage_of_units(self) -> np.ndarray:
        """The number of each unit's passage, [U]."""
        starts = [start for start, _ in self.passages]
        return np.searchsorted(starts, [start for start, _ in self.units], side="right") - 1


@dataclass(frozen=True, slots=True)
class Asked:
    """What a document is compressed for, as scorers see it.

    question: what the reader will be asked. answer: only for scorers that know it, as upper bounds
    and to make training data. rate: the share of tokens that will be kept, about.
    """

    question: str | None = None
    answer: str | None = None
    rate: float = 0.5


@dataclass(frozen=True, slots=True)
class Compressed:
    """A compressed text.

    kept: spans of `original`, in order; empty if a model wrote the text anew (`written`).
    num_tokens are tokens of the user's model; seconds are wall time, of scoring and of all.
    """

    text: str
    original: str
    kept: tuple[Span, ...]
    num_tokens_in: int
    num_tokens: int
    written: bool = False
    seconds: float = 0.0
    scoring_s: float = 0.0
    notes: tuple[str, ...] = field(default=())

    @property
    def rate(self) -> float:
        """Tokens out for each token in; 1 for an empty text."""
        return self.num_tokens / self.num_tokens_in if self.num_tokens_in else 1.0

    def parts(self) -> Iterator[tuple[str, bool]]:
        """The original in pieces, in order, each with whether it was kept."""
        end = 0
        for start, stop in self.kept:
            if start > end:
                yield self.original[end:start], False
            yield self.original[start:stop], True
            end = stop
        if end < len(self.original):
            yield self.original[end:], False

    def recover(self, answer: str) -> str:
        """An answer to the compressed text in the words of the original.

        Words of the answer that the compression joined are replaced by the shortest piece of the
        original that has them in order: LongLLMLingua's response recovery (Jiang et al. 2024,
        arXiv:2310.06839, section 4.4). Other words stay.
        """
        given, own = words(answer), words(self.original)
        if not given or not own:
            return answer
        wanted = [answer[a:b].lower() for a, b in given]
        there = [self.original[a:b].lower() for a, b in own]
        short = [self.text[a:b].lower() for a, b in words(self.text)]
        match = SequenceMatcher(None, wanted, short, autojunk=False).find_longest_match()
        run = wanted[match.a : match.a + match.size]
        if len(run) < 2:
            return answer
        found = _shortest(there, run)
        if found is None:
            return answer
        start, end = own[found[0]][0], own[found[1]][1]
        before, after = given[match.a][0], given[match.a + match.size - 1][1]
        return answer[:before] + self.original[start:end] + answer[after:]


def _shortest(there: Sequence[str], run: Sequence[str]) -> tuple[int, int] | None:
    """First and last place of the shortest piece with all words of the run in order."""
    best: tuple[int, int] | None = None
    for start, word in enumerate(there):
        if word != run[0]:
            continue
        place = start
        for each in run[1:]:
            place = next((i for i in range(place + 1, len(there)) if there[i] == each), -1)
            if place < 0:
                return best
        if best is None or place - start < best[1] - best[0]:
            best = start, place
    return best
