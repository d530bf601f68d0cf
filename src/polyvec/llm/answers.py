"""What a language model is told, what it answers, and the ledger of both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from polyvec.errors import GenerationError, SettingsError

Finish = Literal["stop", "length", "refusal"]
MIN_TEMPERATURE = 1e-6  # far below, logits divided by it are no longer finite


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How answers are drawn.

    temperature: 0 takes the likeliest token each time (greedy); then `top_p` and `seed` do
        nothing and `n` must be 1.
    stop: texts at which an answer ends; they are not part of it.
    n: answers a prompt, drawn independently.
    seed: with the prompt and the answer's number, decides what is drawn.
    schema: a JSON schema that the answer, as JSON, must satisfy. Give texts a maxLength and lists
        maxItems: without them a small model may write on until max_new_tokens.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    n: int = 1
    seed: int = 0
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SettingsError(f"max_new_tokens {self.max_new_tokens} must be 1 or more")
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature < math.inf:
            raise SettingsError(
                f"temperature {self.temperature} must be 0 (greedy) or from {MIN_TEMPERATURE:g}, "
                "and finite"
            )
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p {self.top_p} must be above 0 and at most 1")
        if self.n < 1:
            raise SettingsError(f"n {self.n} must be 1 or more")
        if self.n > 1 and self.temperature == 0:
            raise SettingsError(
                f"n {self.n} answers at temperature 0 would all be the same; set a temperature"
            )
        if isinstance(self.stop, str) or not all(self.stop):
            raise SettingsError(f"stop must be texts that are not empty, got {self.stop!r}")


@dataclass(frozen=True, slots=True)
class Answer:
    """One text that was written.

    finish: "stop" at its end, "length" if it was cut by max_new_tokens, "refusal" if the server's
        filter or the model itself declined.
    parsed: with a schema, the JSON value; None if the text is not such a value, and then `error`
        says why.
    """

    text: str
    finish: Finish
    new_tokens: int
    parsed: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The answers to one prompt, or the error because of which there is none."""

    answers: tuple[Answer, ...]
    prompt_tokens: int = 0
    error: str | None = None
    cached: bool = False

    @property
    def text(self) -> str:
        """The first answer; GenerationError if there is none."""
        return self.answer.text

    @property
    def answer(self) -> Answer:
        if self.error is not None or not self.answers:
            raise GenerationError(self.error or "the model gave no answer")
        return self.answers[0]

    @property
    def problem(self) -> str | None:
        """What is wrong with it in a word or two, for counts; None if nothing is."""
        if self.error is not None:
            return "error"
        for answer in self.answers:
            if answer.finish == "refusal":
                return "refused"
            if answer.finish == "length":
                return "cut by max_new_tokens"
            if answer.error is not None:
                return "not of the schema"
            if not answer.text.strip():
                return "empty"
        return None


@dataclass(slots=True)
class Usage:
    """What a model was asked so far: the ledger of its calls.

    Costs are in the currency of the prices, which are per million tokens; None without prices.
    """

    prompts: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    problems: dict[str, int] = field(default_factory=dict)
    prompt_price: float | None = None
    new_price: float | None = None

    def add(self, completion: Completion) -> None:
        self.prompts += 1
        self.cached += completion.cached
        if not completion.cached:
            self.prompt_tokens += completion.prompt_tokens
            self.new_tokens += sum(answer.new_tokens for answer in completion.answers)
        if completion.problem is not None:
            self.problems[completion.problem] = self.problems.get(completion.problem, 0) + 1

    @property
    def cost(self) -> float | None:
        """What the tokens cost; answers from the cache cost nothing."""
        if self.prompt_price is None and self.new_price is None:
            return None
        prompt, new = self.prompt_price or 0.0, self.new_price or 0.0
        return (prompt * self.prompt_tokens + new * self.new_tokens) / 1e6
