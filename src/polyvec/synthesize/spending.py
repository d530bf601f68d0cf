"""A budget for calls of a language model: what is left is asked, the rest is said to be unasked."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from polyvec.errors import GenerationError, SettingsError
from polyvec.llm.answers import Completion, GenerationSettings, Usage
from polyvec.llm.language_model import LanguageModel, WrappedLanguageModel
from polyvec.llm.prompts import Prompt

BUDGET_SPENT = "the budget is spent"
AT_ONCE = 256  # prompts given to the model together, between two looks at what they cost


@dataclass(frozen=True, slots=True)
class Budget:
    """At most so many calls, or so much money (in the currency of the prices)."""

    calls: int | None = None
    money: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """500 are calls; 2.50, or $2, is money."""
        if re.fullmatch(r"\d+", text):
            return cls(calls=int(text))
        if re.fullmatch(r"[$€£]?\d+(\.\d+)?", text):
            return cls(money=float(text.lstrip("$€£")))
        raise SettingsError(f"budget {text!r} is neither calls (500) nor money (2.50, or $2)")

    def __str__(self) -> str:
        return f"{self.calls} calls" if self.calls is not None else f"{self.money:g}"


class BudgetedLanguageModel(WrappedLanguageModel):
    """Any language model; once the budget is spent, prompts get the error BUDGET_SPENT.

    `spent` counts what was asked here, with what earlier runs have spent. It never asks a prompt
    that could cost more than what is left.
    """

    def __init__(
        self,
        model: LanguageModel,
        budget: Budget | None,
        spent: Usage,
        on_spent: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(model)
        self.on_spent, self.budget, self.spent = on_spent, budget or Budget(), spent
        spent.prompt_price, spent.new_price = model.usage.prompt_price, model.usage.new_price
        if self.budget.money is not None and spent.cost is None:
            raise SettingsError("a budget of money needs --prompt-price and --new-price")

    def stream_checked(
        self, prompts: Sequence[Prompt], settings: GenerationSettings
    ) -> Iterator[tuple[int, Completion]]:
        start = 0
        while start < len(prompts):
            num = self._affordable(prompts[start : start + AT_ONCE], settings)
            if not num:
                break
            part = prompts[start : start + num]
            for number, completion in self.model.stream_checked(part, settings):
                self.spent.add(completion)
                self.on_spent()
                yield start + number, completion
            start += num
        for number in range(start, len(prompts)):
            yield number, Completion((), error=BUDGET_SPENT)

    def logprobs_checked(
        self, prompts: Sequence[Prompt], continuations: Sequence[str]
    ) -> list[np.ndarray]:
        asked = list(zip(prompts, continuations, strict=True))
        most = [self._worst_cost(each, len(more.encode())) for each, more in asked]
        with self._taken(len(prompts), sum(most)):
            return self.model.logprobs_checked(prompts, continuations)

    def score_checked(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        most = [self._worst_cost(each, 1) for each in prompts]
        with self._taken(len(prompts), sum(most)):
            return self.model.score_checked(prompts, choices)

    def take(self, num: int) -> None:
        """Count calls of a step that tunes the model and asks it by itself.

        Raises GenerationError if they are more than what is left, SettingsError for a budget of
        money.
        """
        if self.budget.money is not None:
            raise SettingsError(
                "a budget of money does not bound what is read and written while a model is "
                "tuned; give --budget in calls, such as 500, or none"
            )
        with self._taken(num, 0.0):
            pass

    @contextlib.contextmanager
    def _taken(self, num: int, most: float) -> Iterator[None]:
        """Count calls around them, with the tokens that the model's own ledger grows by.

        Raises GenerationError if they are more than what is left, or could cost more (`most`).
        """
        budget, usage = self.budget, self.model.usage
        left = None if budget.calls is None else budget.calls - self.spent.prompts
        if left is not None and num > left:
            raise GenerationError(BUDGET_SPENT)
        if budget.money is not None and most > budget.money - (self.spent.cost or 0.0):
            raise GenerationError(BUDGET_SPENT)
        before = dataclasses.replace(usage)
        try:
            yield
        finally:
            # A local model's own ledger does not have the prompts that it only scores.
            usage.prompts = max(usage.prompts, before.prompts + num)
            self.spent.prompts += num
            self.spent.prompt_tokens += usage.prompt_tokens - before.prompt_tokens
            self.spent.new_tokens += usage.new_tokens - before.new_tokens
            self.on_spent()

    def _affordable(self, prompts: Sequence[Prompt], settings: GenerationSettings) -> int:
        if self.budget.calls is not None:
            return min(len(prompts), max(0, self.budget.calls - self.spent.prompts))
        if self.budget.money is None:
            return len(prompts)
        left = self.budget.money - (self.spent.cost or 0.0)
        for number, prompt in enumerate(prompts):
            left -= self._worst_cost(prompt, settings.n * settings.max_new_tokens)
            if left < 0:
                return number
        return len(prompts)

    def _worst_cost(self, prompt: Prompt, new_tokens: int) -> float:
        """A token has at least a byte, so that a server's count cannot be more."""
        if self.budget.money is None:
            return 0.0
        tokens = self.model.count_tokens([prompt])
        if tokens is None:
            texts = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]
            tokens = sum(len(text.encode()) + 16 for text in texts)
        most = Usage(prompt_tokens=tokens, new_tokens=new_tokens)
        most.prompt_price, most.new_price = self.spent.prompt_price, self.spent.new_price
        return most.cost or 0.0
