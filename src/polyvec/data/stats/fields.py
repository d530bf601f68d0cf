"""One field of a data file: statistics of its values, and whether they are texts."""

import random
from array import array
from collections import Counter
from typing import Any

import numpy as np

from polyvec.data.texts import ID_COLUMNS, TEXT_COLUMNS
from polyvec.data.words import hash64, normalized, spaced, words

SAMPLE = 500  # texts per field whose language is identified; shares are within 4 points
SEED = 0
MAX_LABELS = 1000  # distinct values of a field above which they are not counted
MAX_LABEL_CHARACTERS = 100
FEW_WORDS, MANY_WORDS, MANY_TIMES = 2, 5, 10  # see Field.kind
LANGUAGE_FIELDS = ("lang", "language", "locale")
LABEL_FIELDS = ("label", "labels", "labels[]")
MAX_NUMBER_LABELS = 50


class Field:
    """Statistics of a field, collected while its file is read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_strings, self.num_numbers, self.num_empty, self.num_others = 0, 0, 0, 0
        self.low, self.high, self.total, self.whole = float("inf"), float("-inf"), 0.0, True
        self.characters, self.words = array("Q"), array("Q")
        self.exact, self.near = array("Q"), array("Q")
        self.counts: Counter[str] | None = Counter()
        self.sample: list[str] = []
        self.draw = random.Random(SEED)

    def add(self, value: Any) -> None:
        if isinstance(value, str):
            self._add_string(value)
        elif isinstance(value, int | float):
            self.num_numbers += 1
            number = float(value)
            self.low, self.high = min(self.low, number), max(self.high, number)
            self.total += number
            self.whole = self.whole and number.is_integer()
            self._count(str(value))
        elif value is not None:
            self.num_others += 1

    def _add_string(self, value: str) -> None:
        text = spaced(value)
        if not text:
            self.num_empty += 1
            return
        self.num_strings += 1
        self.characters.append(len(value))
        self.words.append(len(words(text)))
        self.exact.append(hash64(text))
        self.near.append(hash64(normalized(text)))
        self._count(text)
        if len(self.sample) < SAMPLE:
            self.sample.append(text)
        # Reservoir sampling: each text so far is in the sample with equal probability.
        elif (place := self.draw.randrange(self.num_strings)) < SAMPLE:
            self.sample[place] = text

    def _count(self, text: str) -> None:
        if self.counts is None:
            return
        self.counts[text] += 1
        if len(self.counts) > MAX_LABELS or len(text) > MAX_LABEL_CHARACTERS:
            self.counts = None

    @property
    def num_distinct(self) -> int:
        return len(np.unique(np.asarray(self.exact)))

    @property
    def kind(self) -> str:
        """ "text", "language", "label", "number" or "other", from the values and the name.

        Texts have five words on average, or two if they rarely repeat (each fewer than ten
        times). Labels are shorter strings, or a few distinct integers, that repeat.
        """
        last = self.name.rpartition(".")[2]
        if self.num_strings == 0:
            return self._number_kind(last)
        if last in LANGUAGE_FIELDS:
            return "language"
        if last in ID_COLUMNS:
            return "other"
        mean_words = sum(self.words) / self.num_strings
        repeats = self.num_strings / self.num_distinct
        rarely = mean_words >= FEW_WORDS and repeats < MANY_TIMES
        if last in TEXT_COLUMNS or mean_words >= MANY_WORDS or rarely:
            return "text"
        is_label = repeats >= 2 and self.counts is not None
        return "label" if is_label or last in LABEL_FIELDS else "other"

    def _number_kind(self, last: str) -> str:
        if self.num_numbers == 0 or last in ID_COLUMNS:
            return "text" if last in TEXT_COLUMNS and self.num_empty else "other"
        few = self.counts is not None and 2 * len(self.counts) <= self.num_numbers
        is_label = self.whole and few and len(self.counts or ()) <= MAX_NUMBER_LABELS
        return "label" if last in LABEL_FIELDS or (is_label and last != "score") else "number"
