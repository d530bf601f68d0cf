"""The run of a recipe's steps over texts, in a folder from which a killed run goes on."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyvec.data.texts import Record
from polyvec.errors import DataError, GenerationError, PolyvecError, SettingsError
from polyvec.llm.answers import Usage
from polyvec.llm.language_model import LanguageModel
from polyvec.registry import Registry
from polyvec.storage.files import held
from polyvec.synthesize.folder import (
    StepFiles,
    StepReport,
    fingerprint,
    training_lines,
    write_rows,
)
from polyvec.synthesize.rows import Changed, Rejected, Row
from polyvec.synthesize.sections import StepSettings
from polyvec.synthesize.spending import BUDGET_SPENT
from polyvec.synthesize.step import STEPS, Step, Tools
from polyvec.synthesize.tuned import DESCRIPTION, check_made

ROWS, TRAIN, REJECTED = "rows.jsonl", "train.jsonl", "rejected.jsonl"
STEP_FOLDER = "steps"


@dataclass(frozen=True, slots=True)
class Made:
    """What a run made: its rows, what each step rejected, and a report of each step."""

    rows: list[Row]
    rejected: list[tuple[str, Rejected]]  # with the name of the step
    reports: list[StepReport]
    num_trainable: int
    unfinished: str | None = None


def parts() -> Registry[type[Step]]:
    """The table of all steps; those of this package are registered by importing them."""
    import polyvec.synthesize.steps.branches
    import polyvec.synthesize.steps.filters
    import polyvec.synthesize.steps.generate
    import polyvec.synthesize.steps.joining
    import polyvec.synthesize.steps.judging
    import polyvec.synthesize.steps.likelihood
    import polyvec.synthesize.steps.pairs
    import polyvec.synthesize.steps.policy
    import polyvec.synthesize.steps.ranking
    import polyvec.synthesize.steps.rating
    import polyvec.synthesize.steps.retrieval
    import polyvec.synthesize.steps.sources
    import polyvec.synthesize.steps.tuning  # noqa: F401

    return STEPS


def build_steps(settings: Sequence[StepSettings], where: str) -> list[Step]:
    """The steps of a recipe; SettingsError names the step by its number from 1."""
    if not settings:
        raise SettingsError(f"{where}: has no [[step]], so there is nothing to do")
    table = parts()
    steps: list[Step] = [
        table.build(each.kind, each.settings, where=f"{where}: [step {number}]")
        for number, each in enumerate(settings, 1)
    ]
    check_made(steps, where)
    return steps


def run_steps(
    steps: Sequence[Step],
    tools: Tools,
    output: str | Path,
    *,
    usage: Callable[[], Usage | None] = lambda: None,
    say: Callable[[StepReport], None] = lambda report: None,
) -> Made:
    """The rows of all steps, written to the folder; steps that are done there are read.

    A run whose budget ends writes what it has. Raises DataError if another run holds the folder, if
    a file of a step is not there, or if no row is left.
    """
    output = Path(output)
    for step in steps:
        step.check()
    with held(output, "writing"):
        done = list(_done(steps, tools, output / STEP_FOLDER, usage, say))
        changed, _ = done[-1]
        rejected = [(report.name, each) for made, report in done for each in made.rejected]
        reports = [report for _, report in done]
        lines = training_lines(changed.kept)
        write_rows(output / ROWS, (row.as_json() for row in changed.kept))
        write_rows(output / TRAIN, lines)
        write_rows(
            output / REJECTED,
            ({"step": s, "reason": r.reason, "row": r.row.as_json()} for s, r in rejected),
        )
    return Made(changed.kept, rejected, reports, len(lines), reports[-1].unfinished)


def _done(
    steps: Sequence[Step],
    tools: Tools,
    folder: Path,
    usage: Callable[[], Usage | None],
    say: Callable[[StepReport], None],
) -> Iterator[tuple[Changed, StepReport]]:
    rows: list[Row] = []
    depends = fingerprint([[each.id, each.text] for each in tools.texts])
    for number, step in enumerate(steps, 1):
        kind = STEPS.name_of(type(step)).replace(":", ".")
        with _named(number, kind):
            depends = fingerprint(depends, kind, step.own_settings(), step.depends(tools))
        files = StepFiles(folder, f"{number:02d}-{kind}")
        found = files.found(depends)
        if found is None or not _is_made(step, tools):
            found = _run(step, number, kind, rows, tools, usage)
            files.write(*found, depends)
        changed, report = found
        say(report)
        yield found
        rows = changed.kept
        if changed.unfinished is not None:
            return
        if not rows:
            raise DataError(
                f"step {number} ({kind}) keeps none of {report.num_in} rows"
                f"{_why(changed)}; see {files.rejected}"
            )


def _why(changed: Changed) -> str:
    """The reasons with their counts; of a single one all that it says, of its first row."""
    reasons = list(changed.reasons())
    if len(reasons) == 1:
        return f": {reasons[0][1]} {changed.rejected[0].reason[:200]}"
    return ": " + "; ".join(f"{count} {reason}" for reason, count in reasons) if reasons else ""


def _is_made(step: Step, tools: Tools) -> bool:
    """Whether the model that the step makes, if any, is still there."""
    return step.makes is None or (
        tools.models is not None and (tools.models / step.makes / DESCRIPTION).is_file()
    )


def _run(
    step: Step,
    number: int,
    kind: str,
    rows: Sequence[Row],
    tools: Tools,
    usage: Callable[[], Usage | None],
) -> tuple[Changed, StepReport]:
    began, before = time.perf_counter(), _copy(usage())
    try:
        with _named(number, kind):
            changed = step.run(rows, tools)
    except GenerationError as error:
        if str(error) != BUDGET_SPENT:
            raise
        # Nothing of this step can be told: the rows before it are kept.
        told = f"step {number} ({kind}) was not done, the budget does not suffice for it"
        changed = Changed(list(rows), unfinished=told)
    if changed.unfinished is not None and not changed.kept:
        changed.kept = list(rows)
    after = _copy(usage())
    return changed, StepReport(
        number,
        kind,
        len(rows),
        len(changed.kept),
        len(changed.rejected),
        dict(changed.reasons()),
        asked=(after.prompts - after.cached) - (before.prompts - before.cached),
        cached=after.cached - before.cached,
        new_tokens=after.new_tokens - before.new_tokens,
        seconds=round(time.perf_counter() - began, 3),
        unfinished=changed.unfinished,
        notes=changed.notes,
    )


@contextlib.contextmanager
def _named(number: int, kind: str) -> Iterator[None]:
    """Errors begin with the step."""
    try:
        yield
    except PolyvecError as error:
        if str(error) != BUDGET_SPENT:
            error.args = (f"step {number} ({kind}): {error}".replace(f"step '{kind}': ", ""),)
        raise


def _copy(usage: Usage | None) -> Usage:
    return Usage() if usage is None else dataclasses.replace(usage)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a step would ask at most; prompt_tokens is a guess where `is_guess`."""

    number: int
    kind: str
    num_rows: int
    num_calls: int
    prompt_tokens: int
    new_tokens: int
    is_guess: bool


@dataclass(frozen=True, slots=True)
class DryRun:
    """What all steps would ask, and the first prompts."""

    steps: list[Estimate]
    shown: list[object]
    skipped: list[str]


def dry_run(steps: Sequence[Step], tools: Tools, *, num_shown: int = 3) -> DryRun:
    """What the steps would ask at most: free ones run, others are thought to keep every row."""
    rows: list[Row] = []
    found = DryRun([], [], [])
    for number, step in enumerate(steps, 1):
        kind = STEPS.name_of(type(step))
        asked = step.asks(rows, tools)
        if asked is not None:
            model = tools.language_model(asked.model)
            tokens, is_guess = _tokens(model, asked.prompts)
            found.shown.extend(asked.prompts[: num_shown - len(found.shown)])
            found.steps.append(
                Estimate(
                    number,
                    kind,
                    len(rows),
                    asked.num_calls,
                    tokens,
                    asked.max_new_tokens,
                    is_guess or bool(found.steps),
                )
            )
            rows = step.guess(rows)
        elif step.free and not found.steps:
            rows = step.run(rows, tools).kept
        else:
            # What a filter keeps of texts that are not written yet is not known: all, at most.
            found.skipped.append(kind)
            rows = step.guess(rows)
    return found


def _tokens(model: LanguageModel, prompts: Sequence[object]) -> tuple[int, bool]:
    """The prompts' tokens, or a guess: four bytes a token."""
    counted = model.count_tokens(prompts)  # type: ignore[arg-type]
    return (counted, False) if counted is not None else (sum(map(_guess, prompts)), True)


def _guess(prompt: object) -> int:
    texts: Iterable[str] = [prompt] if isinstance(prompt, str) else (m["content"] for m in prompt)  # type: ignore[attr-defined]
    return sum(len(text.encode()) // 4 + 4 for text in texts)


def records(texts: Iterable[Record]) -> list[Record]:
    """The texts of a run; DataError if none has a letter."""
    found = list(texts)
    if not any(each.text.strip() for each in found):
        raise DataError("the texts are all empty")
    return found
