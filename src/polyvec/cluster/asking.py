"""What a language model is asked about texts, what it answered, and what the answer changed.

An answer that is none of the choices is counted and changes nothing; nobody guesses what was meant.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polyvec.cluster.sections import MAX_CHARACTERS
from polyvec.errors import GenerationError
from polyvec.llm.answers import Completion
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.prompts import Prompt
from polyvec.synthesize.prompt_files import PromptFile, prompt_file
from polyvec.synthesize.spending import BUDGET_SPENT

FOLDER = Path(__file__).parent / "prompts"
OUTSIDE, EMPTY, UNASKED = "outside the choices", "empty", "not asked: the budget is spent"
AT_ONCE = 64  # prompts whose choices are scored together

Answers = Literal["text", "likelihood"]


@dataclass(slots=True)
class Call:
    """A question: about which texts, what was answered, what that means, and what it changed.

    value: the number of the choice, or the text that was written; None if there is none, and then
        `problem` says why.
    """

    feedback: str
    prompt: str
    texts: tuple[int, ...]
    answer: str | None = None
    value: Any = None
    problem: str | None = None
    effect: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Question:
    """The values of a prompt's slots, the texts that they are about, and what is shown before."""

    values: Mapping[str, Any]
    texts: tuple[int, ...] = ()
    shown: Sequence[Mapping[str, Any]] = ()
    choices: tuple[str, ...] = ()  # in place of the prompt's own


@dataclass(slots=True)
class Asker:
    """A language model, how texts and groups are called in its prompts, and a log of all calls.

    noun: what a text is ("customer utterance"). facet: what groups share ("intent"). answers:
    "text" reads what the model writes; "likelihood" takes the choice that it finds likelier, which
    a local model of any size can say. max_characters: of a text that a prompt shows.
    """

    model: LanguageModel
    noun: str = "text"
    facet: str = "topic"
    answers: Answers = "text"
    show_progress_bar: bool | None = False
    max_characters: int = MAX_CHARACTERS
    calls: list[Call] = field(default_factory=list)

    def choose(self, feedback: str, prompt: str, questions: Sequence[Question]) -> list[Call]:
        """The number of the choice that each question is answered with."""
        found = self._prompt(prompt)
        calls = [Call(feedback, found.name, each.texts) for each in questions]
        prompts = [self._asked(found, each) for each in questions]
        choices = [each.choices or found.answer.choices for each in questions]
        if self.answers == "likelihood":
            self._score(prompts, choices, calls)
        else:
            self._generate(found, prompts, calls, lambda i, text: chosen(text, choices[i]))
        self.calls += calls
        return calls

    def write(self, feedback: str, prompt: str, questions: Sequence[Question]) -> list[Call]:
        """The first line that is written for each question."""
        found = self._prompt(prompt)
        calls = [Call(feedback, found.name, each.texts) for each in questions]
        prompts = [self._asked(found, each) for each in questions]
        self._generate(found, prompts, calls, lambda i, text: self._line(text))
        self.calls += calls
        return calls

    @property
    def num_asked(self) -> int:
        return sum(each.problem != UNASKED for each in self.calls)

    def problems(self) -> Counter[str]:
        """How many calls gave nothing that can be used, by the reason."""
        return Counter(each.problem for each in self.calls if each.problem is not None)

    def shown(self, text: str) -> str:
        """A text as prompts show it: on one line, and cut where it is very long."""
        line = " ".join(text.split())
        most = self.max_characters
        return line if len(line) <= most else line[:most] + " ..."

    def _line(self, text: str) -> tuple[str | None, str | None]:
        """The first line; a server may write more than it was asked for."""
        found, problem = first_line(text)
        return None if found is None else self.shown(found), problem

    def _prompt(self, name: str) -> PromptFile:
        return prompt_file(name, "prompt", FOLDER)

    def _asked(self, found: PromptFile, question: Question) -> Prompt:
        words = {"noun": self.noun, "facet": self.facet, "short": self.noun.split()[-1]}
        shown = [{**words, **each} for each in question.shown]
        asked = found.asked({**words, **question.values}, shown)
        # A model without a chat template goes on with the question as plain text.
        return asked if self.model.takes_chats or isinstance(asked, str) else asked[-1]["content"]

    def _generate(
        self,
        found: PromptFile,
        prompts: Sequence[Prompt],
        calls: Sequence[Call],
        read: Callable[[int, str], tuple[Any, str | None]],
    ) -> None:
        form = found.answer
        given = {"max_new_tokens": form.max_new_tokens, "temperature": form.temperature}
        for number, completion in self.model.stream(
            prompts, show_progress_bar=self.show_progress_bar, stop=form.stop, **given
        ):
            call = calls[number]
            call.answer, call.problem = _text(completion)
            if call.problem is None and call.answer is not None:
                call.value, call.problem = read(number, call.answer)

    def _score(
        self,
        prompts: Sequence[Prompt],
        choices: Sequence[tuple[str, ...]],
        calls: Sequence[Call],
    ) -> None:
        for numbers in _alike(choices):
            part = [prompts[number] for number in numbers]
            scores = self._affordable(part, choices[numbers[0]])
            for number, row in zip(numbers, scores, strict=False):
                calls[number].value = int(row.argmax())
                calls[number].answer = choices[number][calls[number].value]
            for number in numbers[len(scores) :]:
                calls[number].problem = UNASKED

    def _affordable(self, prompts: Sequence[Prompt], choices: tuple[str, ...]) -> np.ndarray:
        """The scores of as many of the first prompts as the budget allows."""
        found, start, num = [np.empty((0, len(choices)), np.float32)], 0, len(prompts)
        while num and start < len(prompts):
            try:
                found.append(self.model.score(prompts[start : start + num], choices))
                start += num
            except GenerationError as error:
                if BUDGET_SPENT not in str(error):
                    raise
                num //= 2
        return np.concatenate(found)


def chosen(text: str, choices: Sequence[str]) -> tuple[int | None, str | None]:
    """The number of the only choice in an answer, or what is wrong with it.

    Words count as a whole, in any case: "no" is not in "know", nor "Choice 1" in "Choice 12".

    >>> chosen("I think Choice 2.", ["Choice 1", "Choice 2"])
    (1, None)
    >>> chosen("Both Choice 1 and Choice 2", ["Choice 1", "Choice 2"])
    (None, 'outside the choices')
    """
    there = [
        number
        for number, each in enumerate(choices)
        if re.search(rf"(?<!\w){re.escape(each)}(?!\w)", text, re.IGNORECASE)
    ]
    return (there[0], None) if len(there) == 1 else (None, OUTSIDE)


def first_line(text: str) -> tuple[str | None, str | None]:
    """The first line with a word on it, without quotation marks around it and a full stop."""
    for line in text.splitlines():
        found = line.strip().strip("\"'“”*").rstrip(".").strip()
        if any(map(str.isalnum, found)):
            return found, None
    return None, EMPTY


def _text(completion: Completion) -> tuple[str | None, str | None]:
    if completion.error is not None:
        return None, UNASKED if BUDGET_SPENT in completion.error else completion.error
    return completion.text, None


def _alike(choices: Sequence[tuple[str, ...]]) -> Iterator[list[int]]:
    """Numbers of prompts with the same choices, some at a time, in order."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, each in enumerate(choices):
        groups.setdefault(each, []).append(number)
    for numbers in groups.values():
        for start in range(0, len(numbers), AT_ONCE):
            yield numbers[start : start + AT_ONCE]
