"""One protocol for a model that writes, whatever is behind it.

`LocalLanguageModel` runs a Hugging Face model, `ServerLanguageModel` asks an OpenAI-compatible
server, `FunctionLanguageModel` calls a function, and `CachedLanguageModel` keeps the answers of
any of them. N prompts, C choices, T tokens of a continuation.
"""

import abc
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from polyvec.errors import AnswerWarning, GenerationError, InputError, SettingsError, known
from polyvec.llm.answers import Completion, GenerationSettings, Usage
from polyvec.llm.progress import generation_progress
from polyvec.llm.prompts import Prompt, check_prompts
from polyvec.llm.schema import check_schema


class LanguageModel(abc.ABC):
    """A model that writes. Subclasses give `identity`, `stream_checked` and, where they can,
    `logprobs_checked`.
    """

    def __init__(self) -> None:
        self.usage = Usage()

    @property
    @abc.abstractmethod
    def identity(self) -> str:
        """What answers depend on beside prompt and settings: a hash of weights, or URL and model.

        Never a key or a password; it is part of file names and logs.
        """

    @property
    def takes_chats(self) -> bool:
        """Whether it answers chats; False for a model without a chat template."""
        return True

    def count_tokens(self, prompts: Sequence[Prompt]) -> int | None:
        """The tokens of all prompts together; None where only the server can count them."""
        return None

    @abc.abstractmethod
    def stream_checked(
        self, prompts: Sequence[Prompt], settings: GenerationSettings
    ) -> Iterator[tuple[int, Completion]]:
        """Each prompt's number and completion, as soon as it is there; every number once.

        A prompt that fails alone (too long, refused, a server's last error) gives a completion
        with `error`; what concerns all (no server, a wrong key) raises GenerationError.
        """

    def logprobs_checked(
        self, prompts: Sequence[Prompt], continuations: Sequence[str]
    ) -> list[np.ndarray]:
        """See `logprobs`."""
        raise GenerationError(
            f"{self.identity} gives no log-probabilities of a given text; use a local model"
        )

    def generate(
        self, prompts: Sequence[Prompt], *, show_progress_bar: bool | None = None, **settings: Any
    ) -> list[Completion]:
        """The completions in the order of the prompts; settings are GenerationSettings'.

        Warns once, with counts, of answers that were cut, refused, empty, not of the schema or
        missing; each completion says what is wrong with it (`problem`, `error`).

        >>> from polyvec.llm.function import FunctionLanguageModel
        >>> FunctionLanguageModel(str.upper).generate(["a cat"])[0].text
        'A CAT'
        """
        found: dict[int, Completion] = {}
        for number, completion in self.stream(
            prompts, show_progress_bar=show_progress_bar, **settings
        ):
            found[number] = completion
        ordered = [found[number] for number in range(len(prompts))]
        warn_of_problems(ordered)
        return ordered

    def stream(
        self, prompts: Sequence[Prompt], *, show_progress_bar: bool | None = None, **settings: Any
    ) -> Iterator[tuple[int, Completion]]:
        """Each prompt's number and completion, as soon as it is there, in any order."""
        checked = check_prompts(prompts)
        chosen = _settings(settings)
        began = time.perf_counter()
        with generation_progress(len(checked), show_progress_bar, self.usage) as advance:
            try:
                for number, completion in self.stream_checked(checked, chosen):
                    self.usage.add(completion)
                    advance(completion)
                    yield number, completion
            finally:
                self.usage.seconds += time.perf_counter() - began

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[np.ndarray]:
        """Log-probabilities, in nats, of each continuation's tokens after its prompt: float32 [T].

        Prompt and continuation are tokenised apart and joined, so a continuation usually starts
        with the space before its first word. Raises InputError for lists of different length or
        an empty continuation.
        """
        checked = check_prompts(prompts)
        if isinstance(continuations, str) or len(continuations) != len(checked):
            raise InputError(
                f"logprobs: {len(checked)} prompts need as many continuations, "
                f"got {len(continuations)}"
            )
        for number, text in enumerate(continuations):
            if not isinstance(text, str) or not text:
                raise InputError(f"continuations[{number}] must be a text that is not empty")
        return self.logprobs_checked(checked, list(continuations))

    def score(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """The probability of each choice after each prompt, float32 [N, C]; each row sums to 1.

        A choice's weight is the probability of all its tokens, as in RankGPT-style and
        yes/no judges; choices of more tokens are therefore less likely.
        """
        if isinstance(choices, str) or len(choices) < 2 or len(set(choices)) < len(choices):
            raise InputError(f"choices must be two or more different texts, got {choices!r}")
        for number, text in enumerate(choices):
            if not isinstance(text, str) or not text:
                raise InputError(f"choices[{number}] must be a text that is not empty")
        return self.score_checked(check_prompts(prompts), list(choices))

    def score_checked(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """See `score`; from the log-probabilities, for models that do not score otherwise."""
        pairs = [(prompt, choice) for prompt in prompts for choice in choices]
        found = self.logprobs_checked([p for p, _ in pairs], [c for _, c in pairs])
        sums_NC = np.array([each.sum() for each in found], np.float64).reshape(-1, len(choices))
        shifted = np.exp(sums_NC - sums_NC.max(axis=1, keepdims=True, initial=-np.inf))
        return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)


class WrappedLanguageModel(LanguageModel):
    """A language model around another one, which it is in all but what a subclass changes."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model, self.usage = model, model.usage

    @property
    def identity(self) -> str:
        return self.model.identity

    @property
    def takes_chats(self) -> bool:
        return self.model.takes_chats

    def count_tokens(self, prompts: Sequence[Prompt]) -> int | None:
        return self.model.count_tokens(prompts)


def warn_of_problems(completions: Sequence[Completion]) -> None:
    """One warning with the count of each problem, if there is any."""
    counts: dict[str, int] = {}
    for completion in completions:
        if completion.problem is not None:
            counts[completion.problem] = counts.get(completion.problem, 0) + 1
    if counts:
        shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        first = next((c.error for c in completions if c.error is not None), None)
        hint = f"; the first error: {first}" if first else ""
        warnings.warn(
            f"{sum(counts.values())} of {len(completions)} answers have problems: {shown}{hint}",
            AnswerWarning,
            stacklevel=3,
        )


def _settings(given: Mapping[str, Any]) -> GenerationSettings:
    names = GenerationSettings.__dataclass_fields__
    for name in given:
        if name not in names:
            raise SettingsError(f"generate: setting {name!r} is not known.{known(name, names)}")
    stop = given.get("stop", ())
    chosen = GenerationSettings(
        **{**given, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    )
    if chosen.schema is not None:
        check_schema(chosen.schema)
    return chosen
