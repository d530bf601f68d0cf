"""A text in units: tokens of a model, words, phrases, sentences or passages, as spans.

A span is (start, end) in characters, without the white space around it. Spans are in order and
do not overlap; what lies between two of them is white space.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from polyvec.data.words import UNSPACED
from polyvec.embed.inputs.content_words import STOP_WORDS

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
_BREAK = re.compile(r"\n[^\S\n]*\n")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_DETERMINERS = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "its",
        "his",
        "her",
        "their",
        "our",
        "my",
        "your",
    ]
)
_LONGEST_PHRASE = 6  # words; in languages whose stop words are not known, nothing else ends one


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


def phrases(text: str) -> list[Span]:
    """Runs of content words with the determiner before them; other words and marks by themselves.

    In place of a parser's noun phrases (Selective Context, Li et al. 2023, arXiv:2310.06201).

    >>> [text[a:b] for text in ["The old bridge of stone fell."] for a, b in phrases(text)]
    ['The old bridge', 'of', 'stone fell', '.']
    """
    found: list[Span] = []
    length, open_ = 0, False  # words of the last phrase, and whether it may go on
    for start, end in words(text):
        word = text[start:end].lower()
        near = bool(found) and text[found[-1][1] : start] in (" ", "")
        content = word[0].isalnum() and word not in STOP_WORDS
        if content and open_ and near and length < _LONGEST_PHRASE:
            found[-1] = (found[-1][0], end)
            length += 1
        else:
            found.append((start, end))
            length, open_ = 1, content or word in _DETERMINERS
    return found


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


# The unit "token" is that of the tokens that are counted: see TokenCounter.spans.
UNITS: dict[str, Callable[[str], list[Span]]] = {
    "word": words,
    "phrase": phrases,
    "sentence": sentences,
    "passage": passages,
}


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


def divided(text: str, parts: Sequence[Span], unit: Callable[[str], list[Span]]) -> list[Span]:
    """The units of each part of a text, so that none reaches beyond its part."""
    return [
        (start + left, start + right)
        for start, end in parts
        for left, right in unit(text[start:end])
    ]


class Strengths:
    """How much any piece of a text separates, as places in SEPARATORS.

    >>> [SEPARATORS[each] for each in Strengths("a b\\n\\nc").of([0, 0], [1, 5])]
    ['', '\\n\\n']
    """

    def __init__(self, text: str) -> None:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        spaces = np.array([ord(each) for each in set(text) if each.isspace()], np.uint32)
        paragraphs = np.zeros(len(text), bool)
        # A paragraph's end counts where its second line break is, so within a piece that has both.
        paragraphs[[match.end() - 1 for match in _BREAK.finditer(text)]] = True
        # How many of each kind come before each place.
        self.before = [
            np.concatenate([[0], np.cumsum(each)])
            for each in (np.isin(codes, spaces), codes == ord("\n"), paragraphs)
        ]

    def of(
        self, starts: Sequence[int] | np.ndarray, ends: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """For the pieces from start to end, int64 [pieces]."""
        found = np.zeros(len(starts), np.int64)
        for level, before in enumerate(self.before, 1):
            found[before[np.asarray(ends)] > before[np.asarray(starts)]] = level
        return found


SEPARATORS = (
    "",
    " ",
    "\n",
    "\n\n",
)  # what stands for dropped text: as strong as the strongest in it
