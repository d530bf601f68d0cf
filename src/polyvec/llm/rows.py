"""Rows of data in, the same rows with a model's answers out, in order, a window at a time."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from polyvec.errors import InputError, SettingsError
from polyvec.llm.answers import Completion, GenerationSettings
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.prompts import Prompt
from polyvec.llm.slots import SlotTemplate

Row = Mapping[str, Any]
WINDOW = 1024  # rows whose answers may wait for an earlier one


@dataclass(frozen=True, slots=True)
class RowPrompt:
    """The prompt of a row: a chat of one question, after a system message if there is one, or,
    with `plain`, a text that the model goes on with.
    """

    template: SlotTemplate
    system: SlotTemplate | None = None
    plain: bool = False

    @property
    def slots(self) -> list[str]:
        return [*self.template.slots, *(self.system.slots if self.system else ())]

    def of(self, row: Row) -> Prompt:
        """InputError for a row without a value for a slot, or with nothing but blanks in all."""
        text = self.template.render(row)
        if not any(str(row[name]).strip() for name in self.slots):
            raise InputError(f"the field {' and '.join(map(repr, self.slots))} is empty")
        if self.plain:
            return text
        system = [{"role": "system", "content": self.system.render(row)}] if self.system else []
        return [*system, {"role": "user", "content": text}]


@dataclass(frozen=True, slots=True)
class Columns:
    """The fields that are added to rows; `answer` is the name of the answer's.

    answer: the text, or with a schema the value; null if there is none.
    error: why there is no answer. problem: what is wrong with an answer ("cut by
    max_new_tokens"). sample: the answer's number, if several are drawn. ANSWER_text: the text
    that is not of the schema.
    """

    answer: str = "answer"
    several: bool = False
    parsed: bool = False

    def __post_init__(self) -> None:
        if not self.answer or self.answer in ("error", "problem", "sample"):
            raise SettingsError(
                f"{self.answer!r} is no name for the answers' field; error, problem and sample "
                "are fields of their own"
            )

    def check(self, row: Row, where: str) -> None:
        """InputError if a field is in the row already, which would be lost."""
        own = [self.answer] + [f"{self.answer}_text"] * self.parsed
        for name in [*own, "error", "problem", *["sample"] * self.several]:
            if name in row:
                hint = "name another field for the answers" if name in own else "rename it"
                raise InputError(
                    f"{where}: the rows have a field {name!r} already, which would be replaced; "
                    f"{hint}"
                )

    def added(self, completion: Completion, sample: int) -> dict[str, Any]:
        """What one answer adds to its row."""
        found = self._found(completion, sample)
        return {"sample": sample, **found} if self.several else found

    def _found(self, completion: Completion, sample: int) -> dict[str, Any]:
        if completion.error is not None:
            return {self.answer: None, "error": completion.error}
        if sample >= len(completion.answers):
            return {self.answer: None, "error": "the model gave no such answer"}
        answer = completion.answers[sample]
        problem = Completion((answer,)).problem
        # A model that takes no notice of schemas says nothing either.
        if self.parsed and answer.parsed is None and answer.text.strip() != "null":
            reason, error = problem or "not of the schema", answer.error or "not parsed"
            reason = error if error.startswith(reason) else f"{reason}: {error}"
            return {self.answer: None, f"{self.answer}_text": answer.text, "error": reason}
        value = answer.parsed if self.parsed else answer.text
        return {self.answer: value} | ({"problem": problem} if problem else {})


def answered_rows(
    model: LanguageModel,
    rows: Iterable[tuple[str, Row]],
    prompt: RowPrompt,
    settings: GenerationSettings,
    *,
    answer: str = "answer",
    window: int = WINDOW,
    on_answer: Callable[[Completion], None] = lambda completion: None,
) -> Iterator[dict[str, Any]]:
    """Each row, given with its place, with the model's answer; `settings.n` rows for each.

    Rows come in their order, as soon as all before them are there; `Columns` says what is added.
    A row that cannot be asked gets its error and the others go on. Raises InputError for a row
    that has such a field already, GenerationError for what concerns all.
    """
    columns = Columns(answer, settings.n > 1, settings.schema is not None)
    chosen = {each.name: getattr(settings, each.name) for each in fields(settings)}
    numbered = iter(rows)
    while part := list(itertools.islice(numbered, window)):
        found: dict[int, Completion] = {}
        asked: dict[int, Prompt] = {}
        for number, (where, row) in enumerate(part):
            columns.check(row, where)
            try:
                asked[number] = prompt.of(row)
            except InputError as error:
                found[number] = Completion((), error=f"{where}: {error}")
        numbers = list(asked)
        next_number = 0
        stream = model.stream(list(asked.values()), show_progress_bar=False, **chosen)
        # None: rows before the first answer, or without any.
        for each in itertools.chain([None], stream):
            if each is not None:
                found[numbers[each[0]]] = each[1]
                on_answer(each[1])
            while next_number in found:
                completion = found.pop(next_number)
                for sample in range(settings.n):
                    yield {**part[next_number][1], **columns.added(completion, sample)}
                next_number += 1


@dataclass(frozen=True, slots=True)
class PromptCount:
    """What rows would ask; `tokens` is None if only the server can count them."""

    num_rows: int
    num_prompts: int
    tokens: int | None
    shown: list[Prompt]
    first_error: str


def count_prompts(
    model: LanguageModel, rows: Iterable[tuple[str, Row]], prompt: RowPrompt, *, num_shown: int
) -> PromptCount:
    """The rows, those with a prompt, its tokens and the first prompts; the model writes nothing."""
    num_rows, num_prompts, first_error = 0, 0, ""
    shown: list[Prompt] = []
    tokens: int | None = 0
    numbered = iter(rows)
    while part := list(itertools.islice(numbered, WINDOW)):
        prompts = []
        for where, row in part:
            try:
                prompts.append(prompt.of(row))
            except InputError as error:
                first_error = first_error or f"{where}: {error}"
        shown += prompts[: num_shown - len(shown)]
        num_rows, num_prompts = num_rows + len(part), num_prompts + len(prompts)
        counted = model.count_tokens(prompts)
        tokens = None if tokens is None or counted is None else tokens + counted
    return PromptCount(num_rows, num_prompts, tokens, shown, first_error)
