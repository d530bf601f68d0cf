"""Filters by what the language model finds likely."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyvec.errors import InputError, SettingsError
from polyvec.llm.answers import GenerationSettings
from polyvec.synthesize.prompt_files import PromptFile, prompt_file
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import STEPS, Asked, Step, Tools
from polyvec.synthesize.steps.generate import Generate, as_taken


@STEPS.register("log_probability")
@dataclass(frozen=True)
class LogProbability(Step):
    """The `keep` rows whose field has the highest mean log-probability of its tokens, in nats.

    InPars' filter (arXiv:2202.05144) with keep = 10000; keep may be a share (0.1). The prompt is
    that of the step that wrote the field, and the field its continuation; `at_least` refuses what
    is less likely. Rows stay in their order, ties are kept first come. Needs a local model.
    """

    prompt: str
    keep: int | float | None = None
    at_least: float | None = None
    model: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keep is None and self.at_least is None:
            raise SettingsError(
                "step 'log_probability': set keep or at_least; else it does nothing"
            )
        if isinstance(self.keep, float) and not 0 < self.keep <= 1:
            raise SettingsError(f"step 'log_probability': keep {self.keep} is no share of the rows")
        if isinstance(self.keep, int) and self.keep < 1:
            raise SettingsError(f"step 'log_probability': keep {self.keep} must be 1 or more")
        if self._file.answer.to not in ("anchor", "positive", "instruction"):
            raise SettingsError(f"step 'log_probability': prompt {self.prompt!r} writes no text")

    @property
    def _file(self) -> PromptFile:
        return prompt_file(self.prompt, "step 'log_probability'")

    def _pairs(self, rows: Sequence[Row], model: Any) -> list[tuple[Any, str] | str]:
        """Prompt and continuation of each row, or why it has none."""
        asking, to = Generate(self.prompt, seed=self.seed), self._file.answer.to
        pairs: list[tuple[Any, str] | str] = []
        for row in rows:
            text = getattr(row, to)
            if not text:
                pairs.append(f"no {to}")
                continue
            try:
                pairs.append((as_taken(asking.prompt_of(row), model), f" {text}"))
            except InputError as error:
                pairs.append(f"no prompt: {error}")
        return pairs

    def asks(self, rows: Sequence[Row], tools: Tools) -> Asked | None:
        pairs = self._pairs(rows, tools.language_model(self.model))
        prompts = [each[0] for each in pairs if not isinstance(each, str)]
        return Asked(prompts, GenerationSettings(max_new_tokens=1), self.model, ("",))

    def uses(self, tools: Tools) -> str:
        return "language_model"

    def depends(self, tools: Tools) -> list[str]:
        return [*super().depends(tools), repr(self._file)]

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        model, found = tools.language_model(self.model), Changed()
        pairs = self._pairs(rows, model)
        asked = [each for each in pairs if not isinstance(each, str)]
        values = iter(model.logprobs([p for p, _ in asked], [c for _, c in asked]))
        scored: list[tuple[Row, float]] = []
        for row, pair in zip(rows, pairs, strict=True):
            if isinstance(pair, str):
                found.reject(row, pair)
                continue
            mean = float(np.mean(next(values)))
            scored.append((row.with_meta(log_probability=round(mean, 4)), mean))
        num = len(scored)
        if self.keep is not None:
            num = (
                self.keep if isinstance(self.keep, int) else max(1, round(self.keep * len(scored)))
            )
        order = np.argsort([-mean for _, mean in scored], kind="stable")
        best = set(order[:num].tolist())
        for place, (row, mean) in enumerate(scored):
            if self.at_least is not None and mean < self.at_least:
                found.reject(row, f"log-probability below {self.at_least:g}: {mean:.3f}")
            elif place not in best:
                found.reject(row, f"log-probability not among the {num} highest: {mean:.3f}")
            else:
                found.keep(row)
        return found
