"""A text in units: tokens of a model, words, phrases, sentences or passages, as spans.

A span is (start, end) in characters, without the white space around it. Spans are in order and
do not overlap; what lies between two of them is white space.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from polyvec.data.units import Span, passages, sentences, stripped, words
from polyvec.embed.inputs.content_words import STOP_WORDS

__all__ = [
    "SEPARATORS",
    "UNITS",
    "Span",
    "Strengths",
    "divided",
    "passages",
    "phrases",
    "sentences",
    "stripped",
    "words",
]

_BREAK = re.compile(r"\n[^\S\n]*\n")
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


# The unit "token" is that of the tokens that are counted: see TokenCounter.spans.
UNITS: dict[str, Callable[[str], list[Span]]] = {
    "word": words,
    "phrase": phrases,
    "sentence": sentences,
    "passage": passages,
}


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
