"""A language model writes a field of each row."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from polyvec.data.words import hash64
from polyvec.errors import InputError, SettingsError, known
from polyvec.llm.answers import Answer, Completion, GenerationSettings
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.prompts import Prompt, is_chat
from polyvec.synthesize.folder import NO_ANSWER
from polyvec.synthesize.prompt_files import DEMONSTRATIONS, demonstrations_of, prompt_file
from polyvec.synthesize.reading import (
    UnreadableError,
    check_target,
    read_answer,
    schema_of,
    with_values,
)
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.spending import BUDGET_SPENT
from polyvec.synthesize.step import STEPS, Asked, Step, Tools

PLACEHOLDER = "word"  # of a dry run: a token of nearly every vocabulary


@STEPS.register("generate")
@dataclass(frozen=True)
class Generate(Step):
    """Each row with what the model answers to its prompt; n rows for n answers.

    prompt: a name (see prompts/) or a file NAME.toml. to: the field that is written; default: as
    the prompt says. slots: by slot, a list to draw from, or the name of a row's field.
    demonstrations: a file of more of them; num_demonstrations of all are drawn for each row,
    never the row's own text. model: another language model than the run's. keep_cut: also answers
    that max_new_tokens cut. The rest as in the prompt's file, unless it is given here.
    """

    prompt: str
    to: str | None = None
    slots: Mapping[str, Any] = field(default_factory=dict)
    demonstrations: str | None = None
    num_demonstrations: int | None = None
    n: int = 1
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] | None = None
    seed: int = 0
    model: str | None = None
    keep_cut: bool = False

    def __post_init__(self) -> None:
        found, where = self.file, f"step 'generate' {self.prompt}"
        form = self.form
        for target in form.fields.values() if form.kind == "json" else (form.to,):
            check_target(target, where)
        if self.to is not None and form.kind == "json":
            raise SettingsError(f"{where}: the prompt's answer has fields of its own; leave out to")
        for name, given in self.slots.items():
            if name not in found.slots:
                raise SettingsError(
                    f"{where}: slot {name!r} is not known.{known(name, found.slots)}"
                )
            if not isinstance(given, str) and not (isinstance(given, list | tuple) and given):
                raise SettingsError(f"{where}: slot {name!r} is {given!r}, not a list or a field")
        for name, slot in found.slots.items():
            if slot.type == "choice" and not slot.values and name not in self.slots:
                raise SettingsError(f"{where}: slot {name!r} has no values; give slots.{name}")
        num, pool = self._num_shown, self._pool
        if num > len(pool):
            origin = self.demonstrations or f"prompt {self.prompt!r}"
            raise SettingsError(
                f"{where}: {len(pool)} demonstrations in {origin}, fewer than "
                f"num_demonstrations = {num}; add some, or lower it"
            )
        _ = self.settings

    @property
    def file(self) -> Any:
        return prompt_file(self.prompt, "step 'generate'")

    @property
    def form(self) -> Any:
        form = self.file.answer
        return form if self.to is None else dataclasses.replace(form, to=self.to)

    @property
    def settings(self) -> GenerationSettings:
        form = self.form
        temperature = form.temperature if self.temperature is None else self.temperature
        return GenerationSettings(
            max_new_tokens=self.max_new_tokens or form.max_new_tokens,
            temperature=temperature,
            top_p=form.top_p if self.top_p is None else self.top_p,
            stop=form.stop if self.stop is None else self.stop,
            n=self.n,
            seed=self.seed,
            schema=schema_of(form),
        )

    @property
    def _num_shown(self) -> int:
        own = self.file.num_demonstrations
        return own if self.num_demonstrations is None else self.num_demonstrations

    @cached_property
    def _pool(self) -> list[Mapping[str, Any]]:
        file = self.file
        if file.demonstration is None:
            if self.demonstrations or self.num_demonstrations:
                raise SettingsError(f"prompt {self.prompt!r} has no place for demonstrations")
            return []
        if self.demonstrations is None:
            return list(file.demonstrations)
        from polyvec.llm.slots import SlotTemplate

        needed = set(SlotTemplate.parse(file.demonstration).slots) - {"number"}
        return [*file.demonstrations, *demonstrations_of(self.demonstrations, sorted(needed))]

    def prompt_of(self, row: Row) -> Prompt:
        """InputError for a row that lacks a value."""
        seed = (self.seed, hash64(row.id), hash64(self.prompt))
        values = self.file.drawn(row.values(), self.slots, seed)
        return self.file.asked(values, self._shown(row, seed))

    def _shown(self, row: Row, seed: tuple[int, ...]) -> list[Mapping[str, Any]]:
        num, pool = self._num_shown, self._pool
        if num == len(pool) and self.demonstrations is None:
            return pool  # in the file's order, as the paper shows them
        own = set(row.texts())
        others = [each for each in pool if own.isdisjoint(map(str, each.values()))]
        if len(others) < num:
            raise InputError(f"{len(others)} demonstrations beside the row's own text, not {num}")
        order = np.random.default_rng([*seed, 1]).permutation(len(others))[:num]
        return [others[place] for place in order.tolist()]

    def asks(self, rows: Sequence[Row], tools: Tools) -> Asked | None:
        model, prompts = tools.language_model(self.model), []
        for row in rows:
            try:
                prompts.append(as_taken(self.prompt_of(row), model))
            except InputError:
                continue
        return Asked(prompts, self.settings, self.model)

    def uses(self, tools: Tools) -> str:
        return "language_model"

    def depends(self, tools: Tools) -> list[str]:
        return [*super().depends(tools), repr(self.file)]

    def guess(self, rows: Sequence[Row]) -> list[Row]:
        form = self.form
        text = " ".join([PLACEHOLDER] * self.settings.max_new_tokens)
        targets = form.fields.values() if form.kind == "json" else (form.to,)
        found = {to: 1.0 if to == "score" else text for to in targets}
        return [with_values(row, found) for row in rows for _ in range(self.n)]

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        model, found = tools.language_model(self.model), Changed()
        asked: list[tuple[Row, Prompt]] = []
        failed: dict[int, str] = {}
        for number, row in enumerate(rows):
            try:
                asked.append((row, as_taken(self.prompt_of(row), model)))
            except InputError as error:
                failed[number] = f"no prompt: {error}"
        completions = iter(self._completions(model, [prompt for _, prompt in asked], tools))
        spent = 0
        for number, row in enumerate(rows):
            if number in failed:
                found.reject(row, failed[number])
                continue
            completion = next(completions)
            if completion.error == BUDGET_SPENT:
                spent += 1
            self._add(found, row, completion)
        if spent:
            found.unfinished = f"the budget is spent; {spent} of {len(rows)} rows were not asked"
        elif rows and not found.kept:
            reason, count = next(found.reasons())
            found.notes["no answer was kept"] = f"{count} times: {reason}"
        found.notes |= _sameness(found.kept, rows, self.form)
        return found

    def _completions(
        self, model: LanguageModel, prompts: Sequence[Prompt], tools: Tools
    ) -> list[Completion]:
        """In the order of the prompts; a repeated one is asked with another seed."""
        found: dict[int, Completion] = {}
        chosen = {each.name: getattr(self.settings, each.name) for each in _FIELDS}
        for turn, numbers in enumerate(_turns(prompts)):
            # At temperature 0 a repeated prompt has the same answer, which the cache gives.
            chosen["seed"] = self.seed + (turn if self.settings.temperature else 0)
            stream = model.stream(
                [prompts[number] for number in numbers],
                show_progress_bar=tools.show_progress_bar,
                **chosen,
            )
            found |= {numbers[place]: completion for place, completion in stream}
        return [found[number] for number in range(len(prompts))]

    def _add(self, found: Changed, row: Row, completion: Completion) -> None:
        if completion.error is not None:
            found.reject(row, f"{NO_ANSWER}: {completion.error}")
            return
        for sample, answer in enumerate(completion.answers):
            own = row.with_meta(id=f"{row.id}.{sample}") if self.n > 1 else row
            # A first line that another follows is whole.
            whole = self.form.kind == "first_line" and "\n" in answer.text.strip()
            problem = _problem(answer, self.keep_cut or whole)
            if problem is not None:
                found.reject(own, problem)
                continue
            try:
                read = read_answer(answer, self.form)
            except UnreadableError as error:
                found.reject(own, f"{error}: {answer.text.strip()[:120]}")
                continue
            for place, values in enumerate(read):
                numbered = own.with_meta(id=f"{own.id}.{place}") if len(read) > 1 else own
                by = dict.fromkeys(values, self.file.name)
                made = numbered.with_meta(made={**numbered.meta.get("made", {}), **by})
                found.keep(with_values(made, values))


_FIELDS = dataclasses.fields(GenerationSettings)


def as_taken(prompt: Prompt, model: LanguageModel) -> Prompt:
    """A chat as one text for a model without a chat template."""
    if not is_chat(prompt) or model.takes_chats:
        return prompt
    return "\n\n".join(message["content"] for message in prompt) + "\n"  # type: ignore[index]


def _turns(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Numbers of the prompts: all that come for the first time, for the second, ..."""
    seen: Counter[str] = Counter()
    turns: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        key = repr(prompt)
        turns.setdefault(seen[key], []).append(number)
        seen[key] += 1
    yield from itertools.islice(turns.values(), len(turns))


def _problem(answer: Answer, keep_cut: bool) -> str | None:
    if answer.finish == "refusal":
        return f"refused: {answer.text.strip()[:120]}"
    if answer.error is not None:
        return f"not of the schema: {answer.error}"
    if answer.finish == "length" and not keep_cut:
        return f"cut by max_new_tokens: {answer.text.strip()[:120]}"
    return None


def _sameness(made: Sequence[Row], rows: Sequence[Row], form: Any) -> dict[str, str]:
    """A note if all answers are the same, though the rows differ."""
    if form.kind in ("json", "number", "choice") or len(made) < 3 or len(rows) < 3:
        return {}
    values = {str(_value(row, form.to)) for row in made}
    if len(values) > 1:
        return {}
    return {"warning": f"all {len(made)} answers are the same: {values.pop()[:60]!r}"}


def _value(row: Row, target: str) -> Any:
    if target.startswith("meta."):
        return row.meta.get(target.removeprefix("meta."))
    return row.negatives[-1:] if target == "negative" else getattr(row, target)


__all__ = ["DEMONSTRATIONS", "Generate", "as_taken"]
