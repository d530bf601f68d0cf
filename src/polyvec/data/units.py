"""A text in units: words, sentences and paragraphs, as spans.

A span is (start, end) in characters, without the white space around it. Spans are in order and
do not overlap; what lies between two of them is white space.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from polyvec.data.words import UNSPACED

Span = tuple[int, int]

# An address; a number; a word with what may be inside it; marks.
_ADDRESS = r"https?://\S+|[\w.+-]+@[\w-]+\.\w+|\d+(?:[.,:]\d+)+"
_WORD = re.compile(rf"{_ADDRESS}|\w+(?:['’-]\w+)*|(?P<mark>[^\w\s])(?P=mark)*")  # of ASCII
_JOINERS, _FLAG, _SKIN = "\u200c\u200d", "[\U0001f1e6-\U0001f1ff]", "\U0001f3fb-\U0001f3ff"
# Sentences end with a mark and what closes after it, before white space; or with a line.
_END = re.compile(r"[.!?…।॥؟۔։።]+[\"'”’)\]]*(?=\s)|[。！？]+[」』”]*|(?=\n)")
_ABBREVIATED = re.compile(
    r"(?:^|[\s(\[\"'])(?:[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|cf|al"
    r"|Fig|Eq|No|Inc|Ltd|Co|Gen|Col|Lt|Sgt|Rev|Hon|approx|ca|pp|vol|e\.g|i\.e)$",
    re.IGNORECASE,
)
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")


def words(text: str) -> list[Span]:
    """Words and marks, each a unit of its own; in scripts without spaces, letters.

    >>> [text[a:b] for text in ["Dr. Wu's 3.5 kg!"] for a, b in words(text)]
    ['Dr', '.', "Wu's", '3.5', 'kg', '!']
    """
    pattern = _WORD if text.isascii() else _any_word(unspaced=bool(UNSPACED.search(text)))
    return [match.span() for match in pattern.finditer(text)]


@functools.cache
def _any_word(*, unspaced: bool) -> re.Pattern[str]:
    r"""As _WORD, of all scripts: vowel signs and accents, which \w leaves out, stay with their
    letter, and an emoji stays whole.

    unspaced: letters of scripts without spaces are words; slower, as it looks at each letter.
    """
    # Beyond 0xffff a set of characters is a slow list, and there are historical scripts alone.
    signs = "".join(map(chr, range(0x300, 0x10000)))
    signs = "".join(sign for sign in signs if unicodedata.category(sign).startswith("M"))
    word = rf"\w+(?:[{signs}{_JOINERS}]+\w*)*"
    if unspaced:
        word = rf"(?:(?!{UNSPACED.pattern})\w[{signs}{_JOINERS}]*)+"
    emoji = rf"[^\w\s][{signs}{_SKIN}]*"
    several = rf"(?P<mark>[^\w\s])(?P=mark)+(?![{signs}{_SKIN}\u200d])"
    parts = [UNSPACED.pattern] if unspaced else []
    parts += [_ADDRESS, rf"{word}(?:['’-]{word})*", rf"{_FLAG}{{2}}", several]
    parts.append(rf"{emoji}(?:\u200d{emoji})*")
    return re.compile("|".join(parts))


def sentences(text: str) -> list[Span]:
    """Sentences, by their marks and by lines; initials and common abbreviations end none.

    >>> [text[a:b] for text in ["Dr. Wu came. She left!"] for a, b in sentences(text)]
    ['Dr. Wu came.', 'She left!']
    """
    ends = [0]
    for match in _END.finditer(text):
        before = text[max(ends[-1], match.start() - 12) : match.start()]
        if match.group().startswith(".") and _ABBREVIATED.search(before):
            continue
        ends.append(match.end())
    return stripped(text, pairwise_to_end(ends, len(text)))


def passages(text: str) -> list[Span]:
    """Paragraphs, which empty lines separate."""
    ends = [0, *(match.end() for match in _PARAGRAPH.finditer(text))]
    return stripped(text, pairwise_to_end(ends, len(text)))


def pairwise_to_end(starts: Sequence[int], end: int) -> list[Span]:
    return list(pairwise([*starts, end]))


def stripped(text: str, spans: Sequence[Span]) -> list[Span]:
    """The spans without the white space around them; none that is empty then."""
    found = []
    for start, end in spans:
        piece = text[start:end]
        left = start + len(piece) - len(piece.lstrip())
        if right := piece.strip():
            found.append((left, left + len(right)))
    return found
