"""Filters that need no model: lengths, languages, copies, refusals, repeated rows."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from polyvec.data.words import normalized, words
from polyvec.errors import SettingsError
from polyvec.synthesize.reading import BULLET, with_values
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import STEPS, Step, Tools

Field = Literal["anchor", "positive", "negatives", "instruction"]
# A refusal, or talk about the task, at the beginning of an answer. From SynCSE's advice to clean
# its data, and from what SmolLM2, Llama and GPT write.
REFUSALS = re.compile(
    r"(as an? (ai|artificial intelligence|large language model|language model)\b"
    r"|i(’|')?m sorry\b|i am sorry\b|sorry, (but )?i\b|i apologi[sz]e\b"
    r"|i (can(’|')?t|cannot|can not|am unable to|(’|')?m unable to|am not able to|won(’|')?t)\b"
    r"|i(’|')m (unable|not able) to\b|unfortunately, i\b"
    r"|(it is|it(’|')s) not (possible|appropriate)"
    r"|please provide (me )?(with )?(the|a|more)\b)",
    re.I,
)
# Words before the answer itself: "Sure, here is a question: ..."
PREAMBLE = re.compile(
    r"^(sure|certainly|of course|okay|ok)?[,!.]?\s*(here(’|')?s|here (is|are))\b[^:\n]{0,80}:\s*",
    re.I,
)


LABEL = re.compile(r"^(question|query|answer|sentence|output|q|a)\s*\d*\s*:\s+", re.I)


@STEPS.register("length")
@dataclass(frozen=True)
class Length(Step):
    """Rows whose field has from `min` to `max` words; of negatives those that have not go."""

    field: Field = "anchor"
    min: int = 1
    max: int | None = None

    free = True

    def __post_init__(self) -> None:
        if self.min < 0 or (self.max is not None and self.max < self.min):
            raise SettingsError(f"step 'length': min {self.min} to max {self.max} holds nothing")

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        def wrong(row: Row, text: str) -> str | None:
            num = len(words(text))
            if num < self.min:
                return f"{self.field} shorter than {self.min} words"
            if self.max is not None and num > self.max:
                return f"{self.field} longer than {self.max} words"
            return None

        return filtered(rows, self.field, wrong)


@STEPS.register("language")
@dataclass(frozen=True)
class Language(Step):
    """Rows whose field is in one of these languages (ISO 639).

    keep_uncertain: whether texts whose language cannot be told stay, as very short ones.
    """

    languages: tuple[str, ...]
    field: Field = "anchor"
    keep_uncertain: bool = True

    free = True

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        from polyvec.data.stats.languages import UNKNOWN, language

        kept = {*self.languages, *((UNKNOWN, "zxx") if self.keep_uncertain else ())}

        def wrong(row: Row, text: str) -> str | None:
            found = language(text)
            return None if found in kept else f"{self.field} in another language: {found}"

        return filtered(rows, self.field, wrong)


@STEPS.register("copies")
@dataclass(frozen=True)
class Copies(Step):
    """Rows whose field is not taken from another: the same but for case and punctuation, or, with
    `inside`, a part of it; `ngram` refuses that many words in a row in common.
    """

    field: Field = "anchor"
    of: Literal["anchor", "positive"] = "positive"
    inside: bool = False
    ngram: int | None = None

    free = True

    def __post_init__(self) -> None:
        if self.field == self.of:
            raise SettingsError(f"step 'copies': field and of are both {self.of!r}")
        if self.ngram is not None and self.ngram < 1:
            raise SettingsError(f"step 'copies': ngram {self.ngram} must be 1 or more")

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        def wrong(row: Row, text: str) -> str | None:
            other = getattr(row, self.of)
            if other is None:
                return None
            mine, theirs = normalized(text), normalized(other)
            if mine == theirs:
                return f"{self.field} equal to {self.of}"
            if self.inside and f" {mine} " in f" {theirs} ":
                return f"{self.field} is a part of {self.of}"
            if self.ngram is not None and _shares(mine, theirs, self.ngram):
                return f"{self.field} has {self.ngram} words in a row of {self.of}"
            return None

        return filtered(rows, self.field, wrong)


def _shares(mine: str, theirs: str, n: int) -> bool:
    found = words(mine)
    every = f" {' '.join(words(theirs))} "
    grams = (" ".join(found[start : start + n]) for start in range(len(found) - n + 1))
    return any(f" {gram} " in every for gram in grams)


@STEPS.register("refusals")
@dataclass(frozen=True)
class Refusals(Step):
    """Rows whose field is no refusal ("As an AI language model ..."), without what is before it.

    clean: takes away "Sure, here is a question:", "Question:", a bullet, and quotation marks around
        all of it.
    more: further texts that are refusals wherever they are, without regard to case.
    """

    field: Field = "anchor"
    clean: bool = True
    more: tuple[str, ...] = ()

    free = True

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        def wrong(row: Row, text: str) -> str | None:
            lower = text.casefold()
            if not text.strip():
                return f"{self.field} is empty"
            if REFUSALS.match(text.lstrip(" \"'“*")) or any(
                each.casefold() in lower for each in self.more
            ):
                return f"{self.field} is a refusal: {text[:120]}"
            return None

        cleaned = [_cleaned(row, self.field) for row in rows] if self.clean else list(rows)
        return filtered(cleaned, self.field, wrong)


def _cleaned(row: Row, name: str) -> Row:
    if name == "negatives":
        return dataclasses.replace(row, negatives=tuple(map(clean, row.negatives)))
    text = getattr(row, name)
    return row if text is None else with_values(row, {name: clean(text)})


def clean(text: str) -> str:
    """The text without a preamble, a bullet or quotation marks around all of it.

    >>> clean('Sure! Here is a question: "What is a cat?"'), clean("1. Question: Why?")
    ('What is a cat?', 'Why?')
    """
    text = BULLET.sub("", PREAMBLE.sub("", text.strip())).strip()
    text = LABEL.sub("", text).strip() or text
    for first, last in ('""', "''", "“”", "«»"):
        inner = text[1:-1]
        if len(text) > 2 and text[0] == first and text[-1] == last and first not in inner:
            return inner.strip()
    return text


@STEPS.register("deduplicate")
@dataclass(frozen=True)
class Deduplicate(Step):
    """The first of rows that are the same in `fields`, but for case and punctuation.

    similarity: also rows whose first field is at least so near, by the embedder, to that of an
    earlier one. model: another embedder than the run's.
    """

    fields: tuple[Literal["anchor", "positive", "instruction"], ...] = ("anchor", "positive")
    similarity: float | None = None
    model: str | None = None

    @property
    def free(self) -> bool:  # type: ignore[override]
        return self.similarity is None

    def __post_init__(self) -> None:
        if not self.fields:
            raise SettingsError("step 'deduplicate': fields is empty")
        if self.similarity is not None and not -1 < self.similarity <= 1:
            raise SettingsError(f"step 'deduplicate': similarity {self.similarity} is no cosine")

    def uses(self, tools: Tools) -> str | None:
        return None if self.similarity is None else "embedder"

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        seen: dict[tuple[str, ...], str] = {}
        found = Changed()
        for row in rows:
            key = tuple(normalized(getattr(row, name) or "") for name in self.fields)
            if key in seen:
                same = " and ".join(self.fields)
                found.reject(row, f"the same {same} as an earlier row: {seen[key]}")
            else:
                seen[key] = row.id
                found.keep(row)
        return found if self.similarity is None else self._near(found, tools)

    def _near(self, found: Changed, tools: Tools) -> Changed:
        from polyvec.synthesize.nearest import first_near

        texts = [getattr(row, self.fields[0]) or "" for row in found.kept]
        assert self.similarity is not None
        earlier = first_near(texts, tools.embedder(self.model), self.similarity)
        kept = Changed(rejected=found.rejected)
        for row, place in zip(found.kept, earlier, strict=True):
            if place is None:
                kept.keep(row)
            else:
                kept.reject(row, f"{self.fields[0]} near an earlier one: {texts[place][:120]}")
        return kept


def filtered(rows: Sequence[Row], name: Field, wrong: Callable[[Row, str], str | None]) -> Changed:
    """Rows of whose field nothing is wrong; a wrong negative leaves its row, which stays.

    A row without the field is rejected, one without negatives is kept.
    """
    found = Changed()
    for row in rows:
        if name == "negatives":
            found.keep(_with_good_negatives(row, found, wrong))
            continue
        text = getattr(row, name)
        reason = f"no {name}" if text is None else wrong(row, text)
        if reason is None:
            found.keep(row)
        else:
            found.reject(row, reason)
    return found


def _with_good_negatives(row: Row, found: Changed, wrong: Callable[[Row, str], str | None]) -> Row:
    reasons = {text: wrong(row, text) for text in row.negatives}
    for text, reason in reasons.items():
        if reason is not None:
            found.reject(dataclasses.replace(row, negatives=(text,)), reason)
    good = tuple(text for text in row.negatives if reasons[text] is None)
    return row if good == row.negatives else dataclasses.replace(row, negatives=good)


@STEPS.register("held_out")
@dataclass(frozen=True)
class HeldOut(Step):
    """Rows without a text of evaluation data: folders of tasks or files of texts.

    Of a folder those are the queries, or all texts that the task asks about, of the split.
    """

    against: tuple[str, ...]
    split: str = "test"

    free = True

    def check(self) -> None:
        from polyvec.synthesize.overlap import evaluation_texts

        evaluation_texts(self.against, self.split)

    def depends(self, tools: Tools) -> list[str]:
        from polyvec.synthesize.folder import file_hash

        return [file_hash(path) for path in self.against]

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        from polyvec.synthesize.overlap import evaluation_texts, without_copies

        return without_copies(rows, evaluation_texts(self.against, self.split))
