"""Notices that come before the scores: truncated texts, other data, NaN."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyvec.evaluate.report import wording
from polyvec.evaluate.report.facts import Facts, Task

if TYPE_CHECKING:
    from polyvec.evaluate.report.contents import Report

FAR_OFF = 0.01  # from the published score: more than reruns of the same model differ
FEW_ITEMS = 50  # below this, an interval is usually wider than the gap between two models


@dataclass(frozen=True, slots=True)
class Notice:
    """A message of level "error", "warning" or "remark", and the tasks that it concerns."""

    level: str
    text: str
    places: tuple[tuple[str, str], ...] = ()


def notices(found: Facts) -> list[Notice]:
    """All notices, the most severe first."""
    return [*_errors(found.report, found.tasks), *_warnings(found), *_remarks(found.tasks)]


def _warnings(found: Facts) -> Iterator[Notice]:
    tasks = found.tasks
    cut = sorted((t for t in tasks if t.num_truncated), key=lambda t: -_cut_share(t))
    if cut:
        places = tuple((_name(task), _cut(task)) for task in cut)
        yield Notice("warning", "Some texts were truncated to the model's maximum length.", places)
    off = [t for t in tasks if t.difference is not None and abs(t.difference) > FAR_OFF]
    if off:
        text = (
            "Scores differ from the published ones by more than 1 point; "
            "check the data and the settings."
        )
        places = tuple((_name(task), wording.signed(task.difference)) for task in off)
        yield Notice("warning", text, places)
    noted = tuple((_name(task), wording.clean(task.note)) for task in tasks if task.note)
    if noted:
        yield Notice(
            "warning",
            "Notes on the data, and known differences from the published data or protocol.",
            noted,
        )
    for note in found.report.notes:
        yield Notice("warning", wording.clean(note))


def _remarks(tasks: Sequence[Task]) -> Iterator[Notice]:
    unscored = [(task, num) for task in tasks if (num := _num_unscored(task))]
    if unscored:
        text = "Some items have no score and are left out of the details."
        places = tuple(
            (_name(task), f"{num:,} of {wording.number_of(task.num_items, task.item_names)}")
            for task, num in unscored
        )
        yield Notice("remark", text, places)
    few = [task for task in tasks if 0 < task.num_items < FEW_ITEMS]
    if few:
        places = tuple((_name(t), wording.number_of(t.num_items, t.item_names)) for t in few)
        yield Notice("remark", "Few items: the interval says more than the score.", places)
    copies = tuple((_name(task), task.official_task) for task in tasks if task.official_task)
    if copies:
        text = (
            "Local copies of the data, identified by folder and hash; not the official benchmark."
        )
        yield Notice("remark", text, tuple((name, f"corresponds to {to}") for name, to in copies))


def _errors(report: "Report", tasks: Sequence[Task]) -> Iterator[Notice]:
    undefined = tuple(
        (_name(task), f"{num} of {wording.number_of(len(scores), ('score', 'scores'))}")
        for task in tasks
        for scores in [[task.score, *(member.score for member in task.members if task.subsets)]]
        if (num := sum(not math.isfinite(score) for score in scores))
    )
    if undefined:
        yield Notice("error", "Some scores are NaN or infinite.", undefined)
    others = {
        (_name(task), member.result.model_sha256[:12])
        for task in tasks
        for member in task.members
        if member.result.model_sha256 != report.model_sha256
    }
    if others:
        yield Notice(
            "error", "Measured with other weights than those named above.", tuple(sorted(others))
        )


def _num_unscored(task: Task) -> int:
    items = (item for member in task.members for item in member.report.outcome.items)
    return sum(not math.isfinite(item.value) for item in items)


def _name(task: Task) -> str:
    return wording.clean(task.name)


def _cut_share(task: Task) -> float:
    return task.num_truncated / max(1, task.num_texts)


def _cut(task: Task) -> str:
    share = wording.percent(_cut_share(task))
    return f"{share} ({task.num_truncated:,} of {task.num_texts:,})"
