"""The part of a text that fits a query best, and its words that are the query's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

WORD = re.compile(r"\w+")
# What words differ in that mean the same: kitten and kittens, run and running.
ENDING = re.compile(r"(?:'s|ies|es|ing|ed|ly|s|e|y)$")
# Words that a query shares with every text; those of two letters and fewer are left out, too.
COMMON = {"and", "are", "does", "for", "from", "has", "have", "how", "that", "the", "this", "was"}
COMMON |= {"were", "what", "when", "where", "which", "who", "why", "with"}


@dataclass(frozen=True, slots=True)
class Snippet:
    """A stretch of a text on one line, and where in it words of the query are."""

    text: str
    marks: tuple[tuple[int, int], ...] = ()


def snippet(text: str, query: str, width: int = 100) -> Snippet:
    """The stretch of at most `width` characters with most of the query's words.

    The first line that is not blank, if none has one.
    """
    words = [word for word in WORD.findall(query) if word.lower() not in COMMON]
    wanted = {_stem(word) for word in words if len(word) > 2 or not word.isascii()}
    found = [m.span() for m in WORD.finditer(text) if _stem(m.group()) in wanted]
    start = _best_start(text, found, width)
    line = text[start : start + width]
    if not found:
        line = line.splitlines()[0] if line.strip() else ""
    elif start + width < len(text) and " " in line[width // 2 :]:
        line = line[: line.rindex(" ")]  # no half of a word
    marks = [(a - start, b - start) for a, b in found if a >= start and b <= start + len(line)]
    # A line break and what controls a terminal are spaces, so that the marks stay in place.
    shown = "".join(char if char.isprintable() else " " for char in line)
    return Snippet(shown.rstrip(), tuple(marks))


def _best_start(text: str, found: Sequence[tuple[int, int]], width: int) -> int:
    """Where the stretch begins: with the text if that has the words, else shortly before them."""
    first = len(text) - len(text.lstrip())
    best, most = first, 0
    for start in [first, *(_line_start(text, place, width) for place, _ in found)]:
        inside = {_stem(text[a:b]) for a, b in found if a >= start and b <= start + width}
        if len(inside) > most:
            best, most = start, len(inside)
    return best


def _line_start(text: str, place: int, width: int) -> int:
    """The start of the word's sentence or line, or of some word before it."""
    earliest = max(0, place - width // 3)
    before = text[earliest:place]
    ends = [m.end() for m in re.finditer(r"(?:[.!?]\s+|\n\s*)", before)]
    if ends:
        return earliest + ends[-1]
    return earliest + (before.find(" ") + 1 if earliest else 0)


def _stem(word: str) -> str:
    folded = word.casefold()
    shorter = ENDING.sub("", folded)
    return shorter if len(shorter) >= 3 else folded
