"""Where documents are cut: a splitter gives the spans of a text's chunks.

Each covers all of a text but white space, and none begins or ends with white space. A size counts
tokens: those of the model's tokenizer, or words and marks where none is given.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

from polyvec.data.chunking.tokens import TokenCount, TokenSpans, packed, word_spans
from polyvec.data.units import Span, passages, sentences, stripped
from polyvec.errors import SettingsError
from polyvec.registry import Fact

Tokens = Annotated[TokenSpans, Fact("token_spans")]
SIZE = 200


class Fixed:
    """Windows of `size` tokens, of which `overlap` are the last of the window before."""

    def __init__(
        self, size: int = SIZE, overlap: int = 0, token_spans: Tokens = word_spans
    ) -> None:
        _check("fixed", size, overlap, limit=size)
        self.size, self.overlap, self.token_spans = size, overlap, token_spans

    def __call__(self, text: str) -> list[Span]:
        count = TokenCount(text, self.token_spans)
        return _windows(text, count, 0, len(text), self.size, self.overlap)


class Sentence:
    """As many whole sentences as have `size` tokens; the last `overlap` of them come again.

    A sentence that is longer is cut into windows. Fewer sentences come again where the next one
    would not fit.
    """

    def __init__(
        self, size: int = SIZE, overlap: int = 0, token_spans: Tokens = word_spans
    ) -> None:
        _check("sentence", size, overlap)
        self.size, self.overlap, self.token_spans = size, overlap, token_spans

    def __call__(self, text: str) -> list[Span]:
        count = TokenCount(text, self.token_spans)
        units = [
            span
            for start, end in sentences(text)
            for span in _windows(text, count, start, end, self.size, 0)
        ]
        costs = [count.within(start, end) for start, end in units]
        runs = packed(costs, self.size, lambda end: end - self.overlap)
        return [(units[first][0], units[end - 1][1]) for first, end in runs]


class Recursive:
    """Paragraphs; one that is longer than `size` tokens in lines, then sentences, then tokens.

    Neighbours that fit together are one chunk, within a part that had to be cut: the splitting by
    separators that LangChain's RecursiveCharacterTextSplitter made common. The last `overlap`
    tokens of a chunk come again, and count in the next one's size.
    """

    def __init__(
        self, size: int = SIZE, overlap: int = 0, token_spans: Tokens = word_spans
    ) -> None:
        _check("recursive", size, overlap, limit=size)
        self.size, self.overlap, self.token_spans = size, overlap, token_spans

    def __call__(self, text: str) -> list[Span]:
        count = TokenCount(text, self.token_spans)
        room = self.size - self.overlap
        found = _recursive(text, count, (0, len(text)), room, (passages, _lines, sentences))
        longer = [(count.before(start, self.overlap), end) for start, end in found[1:]]
        return [*found[:1], *stripped(text, longer)]


def _recursive(
    text: str,
    count: TokenCount,
    span: Span,
    size: int,
    levels: Sequence[Callable[[str], list[Span]]],
) -> list[Span]:
    start, end = span
    if count.within(start, end) <= size:
        return stripped(text, [span])
    if not levels:
        return _windows(text, count, start, end, size, 0)
    parts = [(start + a, start + b) for a, b in levels[0](text[start:end])]
    found: list[Span] = []
    small: list[Span] = []

    def flush() -> None:
        costs = [count.within(a, b) for a, b in small]
        found.extend((small[a][0], small[b - 1][1]) for a, b in packed(costs, size, lambda e: e))
        small.clear()

    for part in parts:
        if count.within(*part) <= size:
            small.append(part)
        else:
            flush()
            found.extend(_recursive(text, count, part, size, levels[1:]))
    flush()
    return found


def _lines(text: str) -> list[Span]:
    spans, start = [], 0
    for line in text.split("\n"):
        spans.append((start, start + len(line)))
        start += len(line) + 1
    return stripped(text, spans)


def _windows(
    text: str, count: TokenCount, start: int, end: int, size: int, overlap: int
) -> list[Span]:
    """Windows over the units of a stretch."""
    if count.within(start, end) <= size:
        return stripped(text, [(start, end)])
    units = count.units(start, end)
    costs = [count.within(*unit) for unit in units]

    def first_of(stop: int) -> int:
        cost = 0
        while stop and cost + costs[stop - 1] <= overlap:
            stop -= 1
            cost += costs[stop]
        return stop

    runs = packed(costs, size, first_of)
    return stripped(text, [(units[a][0], units[b - 1][1]) for a, b in runs])


def _check(kind: str, size: int, overlap: int, limit: int | None = None) -> None:
    """Raises SettingsError for a size or an overlap that no chunk can have."""
    if size < 1:
        raise SettingsError(f"chunker {kind!r}: size is {size}, expected at least 1 token")
    if overlap < 0 or (limit is not None and overlap >= limit):
        most = f" to {limit - 1}, less than the size" if limit is not None else ""
        raise SettingsError(
            f"chunker {kind!r}: overlap is {overlap}, expected 0{most or ' or more'}"
        )
