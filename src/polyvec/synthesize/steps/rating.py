"""A language model rates how similar two texts are, in numbers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from polyvec.errors import GenerationError, SettingsError
from polyvec.llm.answers import GenerationSettings
from polyvec.llm.prompts import Prompt
from polyvec.synthesize.prompt_files import PromptFile, prompt_file
from polyvec.synthesize.reading import UnreadableError, read_answer
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.spending import BUDGET_SPENT
from polyvec.synthesize.step import STEPS, Asked, Step, Tools
from polyvec.synthesize.steps.generate import as_taken

NUMBERS = 6  # of values between low and high that are compared where nothing is written


@STEPS.register("rate")
@dataclass(frozen=True)
class Rate(Step):
    """Each row with the model's rating of anchor and positive; rows without a number go.

    prompt: a name or file whose answer is of kind "number"; its slots are two texts, the second of
    them named by the field "positive".
    to: "score" writes the rating as the row's gold score, for losses of scored pairs; "check" also
        rates the first negative, and keeps rows by the limits below.
    positive_min, negative_max: limits of the ratings (MultiCSR's self-curation: 3 and 3, and the
        positive's above the negative's, arXiv:2310.10962). swap: a negative with the higher rating
        becomes the positive.
    smoothing: a score y of the prompt's range becomes (1 - smoothing) y + smoothing * its middle.
    mode: "write" reads the number that is written; "expect" takes the mean of six numbers of the
        range by their probabilities, for models that do not answer with a number.
    """

    prompt: str
    to: Literal["score", "check"] = "score"
    positive_min: float | None = None
    negative_max: float | None = None
    swap: bool = False
    smoothing: float = 0.0
    mode: Literal["write", "expect"] = "write"
    temperature: float | None = None
    max_new_tokens: int | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        where = f"step 'rate' {self.prompt}"
        if self._file.answer.kind != "number":
            raise SettingsError(f"{where}: the prompt's answer is not of kind 'number'")
        limits = (self.positive_min, self.negative_max)
        if self.to == "score" and (self.swap or any(each is not None for each in limits)):
            raise SettingsError(f"{where}: positive_min, negative_max and swap need to = 'check'")
        if self.to == "check" and self.smoothing:
            raise SettingsError(f"{where}: smoothing is of scores; leave it out")
        if not 0 <= self.smoothing < 1:
            raise SettingsError(f"{where}: smoothing {self.smoothing} is no share below 1")

    @property
    def _file(self) -> PromptFile:
        return prompt_file(self.prompt, "step 'rate'")

    @property
    def _settings(self) -> GenerationSettings:
        form = self._file.answer
        return GenerationSettings(
            max_new_tokens=self.max_new_tokens or form.max_new_tokens,
            temperature=form.temperature if self.temperature is None else self.temperature,
            top_p=form.top_p,
            stop=form.stop,
        )

    @property
    def _choices(self) -> tuple[str, ...]:
        """Numbers from low to high as they would be written: " 0.0" goes on with a text."""
        form = self._file.answer
        values = np.linspace(form.low, form.high, NUMBERS)
        space = " " if self._file.plain else ""
        return tuple(f"{space}{value:.1f}" for value in values)

    def _pairs(self, row: Row) -> list[tuple[str, str]]:
        """Anchor and positive, and for a check anchor and first negative; [] if one lacks."""
        texts = [row.positive, *(row.negatives[:1] if self.to == "check" else ())]
        if row.anchor is None or len(texts) < (2 if self.to == "check" else 1):
            return []
        anchor = row.anchor
        return [(anchor, text) for text in texts if text is not None]

    def _prompt(self, pair: tuple[str, str], tools: Tools) -> Prompt:
        row = {"anchor": pair[0], "positive": pair[1]}
        drawn = self._file.drawn(row, {}, (0,))
        asked = self._file.asked(drawn, self._file.demonstrations)
        return as_taken(asked, tools.language_model(self.model))

    def asks(self, rows: Sequence[Row], tools: Tools) -> Asked | None:
        prompts = [self._prompt(pair, tools) for row in rows for pair in self._pairs(row)]
        choices = self._choices if self.mode == "expect" else ()
        return Asked(prompts, self._settings, self.model, choices)

    def uses(self, tools: Tools) -> str:
        return "language_model"

    def depends(self, tools: Tools) -> list[str]:
        return [*super().depends(tools), repr(self._file)]

    def guess(self, rows: Sequence[Row]) -> list[Row]:
        if self.to == "check":
            return list(rows)
        return [dataclasses.replace(row, score=self._file.answer.high) for row in rows]

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        found = Changed()
        pairs = [(number, pair) for number, row in enumerate(rows) for pair in self._pairs(row)]
        prompts = [self._prompt(pair, tools) for _, pair in pairs]
        ratings: dict[int, list[float | str]] = {}
        for (number, _), rating in zip(pairs, self._ratings(prompts, tools), strict=True):
            ratings.setdefault(number, []).append(rating)
        for number, row in enumerate(rows):
            self._treat(found, row, ratings.get(number, []))
        return found

    def _ratings(self, prompts: Sequence[Prompt], tools: Tools) -> list[float | str]:
        """A number for each prompt, or why there is none."""
        if not prompts:
            return []
        model, form = tools.language_model(self.model), self._file.answer
        if self.mode == "expect":
            values_C = np.linspace(form.low, form.high, NUMBERS)
            expected_P = np.asarray(model.score(prompts, list(self._choices)), float) @ values_C
            return [float(each) for each in expected_P]
        found: list[float | str] = [""] * len(prompts)
        settings = self._settings
        stream = model.stream(
            prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            stop=settings.stop,
            show_progress_bar=tools.show_progress_bar,
        )
        for number, completion in stream:
            if completion.error == BUDGET_SPENT:
                raise GenerationError(BUDGET_SPENT)
            try:
                (read,) = read_answer(completion.answer, form)
                found[number] = float(read[form.to])
            except (UnreadableError, GenerationError) as error:
                found[number] = f"not rated: {error}"
        return found

    def _treat(self, found: Changed, row: Row, said: Sequence[float | str]) -> None:
        numbers = [each for each in said if not isinstance(each, str)]
        if not said:
            found.reject(row, "no anchor and positive" if self.to == "score" else "no negative")
        elif len(numbers) < len(said):
            found.reject(row, next(each for each in said if isinstance(each, str)))
        elif self.to == "score":
            form = self._file.answer
            middle = (form.low + form.high) / 2
            score = (1 - self.smoothing) * numbers[0] + self.smoothing * middle
            row = row.with_meta(rating=round(numbers[0], 4))
            found.keep(dataclasses.replace(row, score=round(score, 6)))
        else:
            self._check(found, row, numbers[0], numbers[1])

    def _check(self, found: Changed, row: Row, positive: float, negative: float) -> None:
        if self.swap and negative > positive:
            texts = (row.positive or "", *row.negatives[1:])
            row = dataclasses.replace(row, positive=row.negatives[0], negatives=texts)
            positive, negative = negative, positive
        row = row.with_meta(ratings=[round(positive, 4), round(negative, 4)])
        told = f"{positive:g} and {negative:g}"
        if negative >= positive:
            found.reject(row, f"the negative is rated as the positive, or above it: {told}")
        elif self.positive_min is not None and positive < self.positive_min:
            found.reject(row, f"positive rated below {self.positive_min:g}: {told}")
        elif self.negative_max is not None and negative > self.negative_max:
            found.reject(row, f"negative rated above {self.negative_max:g}: {told}")
        else:
            found.keep(row)
