"""What a reader must not miss before the scores: cut texts, other data, NaN."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyvec.evaluate.report import words
from polyvec.evaluate.report.facts import Facts, Task

if TYPE_CHECKING:
    from polyvec.evaluate.report.contents import Report

FAR_OFF = 0.01  # a difference from the published score that is pointed out
FEW_ITEMS = 50


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that must not be missed: "error", "warning" or "remark", and where it holds."""

    level: str
    text: str
    places: tuple[tuple[str, str], ...] = ()


def notices(found: Facts) -> list[Notice]:
    """What must not be missed, worst first."""
    return [*_errors(found.report, found.tasks), *_warnings(found), *_remarks(found.tasks)]


def _warnings(found: Facts) -> Iterator[Notice]:
    tasks = found.tasks
    cut = sorted((t for t in tasks if t.num_truncated), key=lambda t: -_cut_share(t))
    if cut:
        places = tuple((_name(task), _cut(task)) for task in cut)
        yield Notice("warning", "Texts were cut at the model's maximum length.", places)
    off = [t for t in tasks if t.difference is not None and abs(t.difference) > FAR_OFF]
    if off:
        text = "More than a point from the published score: other data, or another way to run it?"
        places = tuple((_name(task), words.signed(task.difference)) for task in off)
        yield Notice("warning", text, places)
    noted = tuple((_name(task), words.clean(task.note)) for task in tasks if task.note)
    if noted:
        yield Notice("warning", "Notes on the data.", noted)
    for note in found.report.notes:
        yield Notice("warning", words.clean(note))


def _remarks(tasks: Sequence[Task]) -> Iterator[Notice]:
    unscored = [(task, num) for task in tasks if (num := _num_unscored(task))]
    if unscored:
        text = "Some items have no value of their own and do not count."
        places = tuple(
            (_name(task), f"{num:,} of {words.number_of(task.num_items, task.item_words)}")
            for task, num in unscored
        )
        yield Notice("remark", text, places)
    few = [task for task in tasks if 0 < task.num_items < FEW_ITEMS]
    if few:
        places = tuple((_name(t), words.number_of(t.num_items, t.item_words)) for t in few)
        yield Notice("remark", "Few items: look at the interval before the score.", places)
    copies = tuple((_name(task), task.official_task) for task in tasks if task.official_task)
    if copies:
        text = "Local copies, named by folder and hash: not the official benchmark."
        yield Notice("remark", text, tuple((name, f"corresponds to {to}") for name, to in copies))


def _errors(report: "Report", tasks: Sequence[Task]) -> Iterator[Notice]:
    undefined = tuple(
        (_name(task), f"{num} of {words.number_of(len(scores), ('score', 'scores'))}")
        for task in tasks
        for scores in [[task.score, *(member.score for member in task.members if task.subsets)]]
        if (num := sum(not math.isfinite(score) for score in scores))
    )
    if undefined:
        yield Notice("error", "NaN or infinity where scores should be.", undefined)
    others = {
        (_name(task), member.result.model_sha256[:12])
        for task in tasks
        for member in task.members
        if member.result.model_sha256 != report.model_sha256
    }
    if others:
        yield Notice("error", "Measured with other weights.", tuple(sorted(others)))


def _num_unscored(task: Task) -> int:
    items = (item for member in task.members for item in member.report.outcome.items)
    return sum(not math.isfinite(item.value) for item in items)


def _name(task: Task) -> str:
    return words.clean(task.name)


def _cut_share(task: Task) -> float:
    return task.num_truncated / max(1, task.num_texts)


def _cut(task: Task) -> str:
    share = words.percent(_cut_share(task))
    return f"{share} ({task.num_truncated:,} of {task.num_texts:,})"
