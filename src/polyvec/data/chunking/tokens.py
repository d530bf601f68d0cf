"""How long a stretch of a text is, in tokens, and where it may be cut.

U units of a text: stretches that are never cut.
"""

import bisect
import itertools
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from polyvec.data.units import Span, words

TokenSpans = Callable[[str], Sequence[Span]]
LONGEST_WORD = 40  # characters; a longer run without spaces is several units
JOINER = "\u200d"


def word_spans(text: str) -> list[Span]:
    """Words and marks, where there is no tokenizer: its tokens would be about 1.3 times as many."""
    return [
        (place, min(place + LONGEST_WORD, end))
        for start, end in words(text)
        for place in range(start, end, LONGEST_WORD)
    ]


class TokenCount:
    """The tokens of a text, to count those of any stretch of it.

    Tokens that end in the same character, as the bytes of an emoji do, are one unit: `cuts` has
    the places between units, from 0 to the text's end, U + 1 of them.
    """

    def __init__(self, text: str, token_spans: TokenSpans) -> None:
        # A token with the space before a word begins before the word, so its end counts.
        ends = sorted(end for start, end in token_spans(text) if end > start)
        # White space belongs to what follows it, at the end to the last unit: none is blank.
        last = len(text.rstrip())
        inner = {_whole(text, end) for end in ends if end < last and not text[end - 1].isspace()}
        places = sorted({0, len(text), *(place for place in inner if place < last)})
        self.cuts = places if len(places) > 1 else [0, 0]
        self._ends = [self.cuts[bisect.bisect_left(self.cuts, end)] for end in ends]

    def within(self, start: int, end: int) -> int:
        """Tokens that end after `start` and not after `end`."""
        return bisect.bisect_right(self._ends, end) - bisect.bisect_right(self._ends, start)

    def before(self, place: int, tokens: int) -> int:
        """Where a stretch up to `place` begins that has at most so many tokens."""
        first = bisect.bisect_right(self._ends, place) - tokens
        return self._ends[first - 1] if first > 0 else 0

    def units(self, start: int, end: int) -> list[Span]:
        """The units of a stretch, which cover it."""
        low, high = bisect.bisect_right(self.cuts, start), bisect.bisect_left(self.cuts, end)
        places = [start, *self.cuts[low:high], end]
        return [(a, b) for a, b in itertools.pairwise(places) if b > a]


def _whole(text: str, place: int) -> int:
    """The place, or the next one that is not inside a letter with its marks, or an emoji."""
    while 0 < place < len(text) and (
        unicodedata.category(text[place])[0] == "M"
        or text[place] == JOINER
        or text[place - 1] == JOINER
    ):
        place += 1
    return place


def packed(
    costs_U: Sequence[int], size: int, first_of: Callable[[int], int]
) -> Iterator[tuple[int, int]]:
    """Runs of units, as first and end, that cost at most `size`; a unit that costs more is alone.

    `first_of(end)` is the unit with which the run after one that stopped at `end` should begin,
    to repeat what came before; fewer are repeated where the next unit would not fit.
    """
    start, end = 0, 0
    while end < len(costs_U):
        cost = sum(costs_U[start:end])
        while start < end and cost + costs_U[end] > size:
            cost -= costs_U[start]
            start += 1
        while end < len(costs_U) and (end == start or cost + costs_U[end] <= size):
            cost += costs_U[end]
            end += 1
        yield start, end
        start = max(first_of(end), start)
