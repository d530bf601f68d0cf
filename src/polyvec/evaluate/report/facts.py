"""The figures of a report in the order of display, for both the page and Markdown."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvec.errors import InputError
from polyvec.evaluate.outcome import Item, Outcome
from polyvec.evaluate.report import slices, wording
from polyvec.evaluate.report.intervals import MAX_ITEMS, Interval, bootstrap, interval
from polyvec.evaluate.report.intervals import score as statistic_of
from polyvec.evaluate.report.slices import LabelScore, Slice, Worst

if TYPE_CHECKING:
    from polyvec.evaluate.report.contents import Report, TaskReport

MAX_SHOWN = 10  # subsets of a task with details: the 5 best and the 5 worst


@dataclass(frozen=True, slots=True)
class Details:
    """What is shown of a task, or of a subset, below its score.

    `sliced` is the measure of the scores by length and `measure` that of a single item: the main
    measure, or "" if the items have other scores.
    """

    slices: tuple[Slice, ...]
    unit: str
    sliced: str
    worst: tuple[Worst, ...]
    labels: tuple[LabelScore, ...]
    measure: str
    agreement: bool
    num_zero: int
    num_full: int


@dataclass(frozen=True, slots=True)
class Member:
    """A task report with its bootstrap samples, and its details if they are shown."""

    anchor: str
    report: "TaskReport"
    sampled: np.ndarray | None
    details: Details | None = None

    @property
    def result(self) -> Any:
        return self.report.result

    @property
    def score(self) -> float:
        return _main(self.report)

    @property
    def interval(self) -> Interval | None:
        return interval(self.sampled)

    @property
    def num_items(self) -> int:
        return len(self.report.outcome.items)


@dataclass(frozen=True, slots=True)
class Task:
    """One row of the overview: a task with all its subsets."""

    anchor: str
    name: str
    split: str
    kind: str
    measure: str
    members: tuple[Member, ...]
    shown: tuple[Member, ...]
    score: float
    interval: Interval | None
    published: float | None
    official_task: str
    note: str
    num_texts: int
    num_truncated: int
    seconds: float
    encode_seconds: float
    num_items: int

    @property
    def difference(self) -> float | None:
        return None if self.published is None else self.score - self.published

    @property
    def subsets(self) -> bool:
        return len(self.members) > 1

    @property
    def item_names(self) -> tuple[str, str]:
        return wording.kind_names(self.kind)[1:]


@dataclass(frozen=True, slots=True)
class Kind:
    """The tasks of one kind, best first; they have a mean if all have the same measure."""

    name: str
    tasks: tuple[Task, ...]

    @property
    def measure(self) -> str:
        names = {task.measure for task in self.tasks}
        return names.pop() if len(names) == 1 else ""

    @property
    def mean(self) -> float | None:
        return float(np.mean([task.score for task in self.tasks])) if self.measure else None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is shown of the tasks."""

    report: "Report"
    kinds: tuple[Kind, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(task for kind in self.kinds for task in kind.tasks)

    def total(self, name: str) -> float:
        return sum(getattr(task, name) for task in self.tasks)


def facts(report: "Report") -> Facts:
    """Intervals, slices and worst items of all tasks, in the order of the page.

    Kinds keep the order of the report; their tasks are sorted by score. Raises InputError for a
    report without tasks and for a published score outside -1 to 1.
    """
    if not report.tasks:
        raise InputError("report: it has no tasks")
    together: dict[tuple[str, str, str], list[TaskReport]] = {}
    for task in report.tasks:
        _check_published(task.result)
        result = task.result
        together.setdefault((result.kind, result.task, result.split), []).append(task)
    by_kind: dict[str, list[Task]] = {}
    for number, ((kind, _, _), reports) in enumerate(together.items(), start=1):
        by_kind.setdefault(kind, []).append(_task(f"task-{number}", reports))
    kinds = tuple(Kind(kind, tuple(sorted(t, key=_best_first))) for kind, t in by_kind.items())
    return Facts(report, kinds)


def groups(outcome: Outcome) -> list[tuple[str, np.ndarray]]:
    """The finite similarities of the outcome, without empty groups.

    A single group of pairs with gold scores is split into three, at equal distances within the
    range of gold scores.
    """
    found = []
    for name, values in outcome.similarities.items():
        array = np.asarray(values, float).ravel()
        if (finite := array[np.isfinite(array)]).size:
            found.append((str(name), finite))
    if len(found) == 1 and slices.is_agreement(outcome.items):
        return _by_gold(outcome.items) or found
    return found


def _by_gold(items: Sequence[Item]) -> list[tuple[str, np.ndarray]]:
    gold, value = np.array([(float(item.gold or 0), item.value) for item in items]).T
    if len(np.unique(gold)) < 3 or not (np.isfinite(gold) & np.isfinite(value)).all():
        return []
    ends = np.linspace(gold.min(), gold.max(), 4)
    place = np.searchsorted(ends[1:3], gold, side="right")
    return [
        (f"gold {ends[part]:.3g} to {ends[part + 1]:.3g}", value[place == part])
        for part in range(3)
        if (place == part).any()
    ]


def _task(anchor: str, reports: Sequence["TaskReport"]) -> Task:
    """A task from its subsets; a report without a subset name beside them covers all of them."""
    whole = [report for report in reports if not _subset(report)]
    parts = [report for report in reports if _subset(report)]
    top = whole[0] if parts and whole else None
    parts = parts or whole
    num_items = sum(len(report.outcome.items) for report in parts)
    members = [
        Member(f"{anchor}-{place}" if len(parts) > 1 else anchor, report, sampled)
        for place, report in enumerate(parts, start=1)
        for sampled in [_sampled(report, place) if num_items <= MAX_ITEMS else None]
    ]
    members.sort(key=_best_first)
    first = parts[0].result
    score = _mean(member.score for member in members)
    sampled = _averaged([member.sampled for member in members])
    if top and not abs(_main(top) - score) < 1e-4:  # not the mean of its subsets
        score, sampled = _main(top), _sampled(top, 0)
    return Task(
        anchor=anchor,
        name=first.task,
        split=first.split,
        kind=first.kind,
        measure=first.main_measure,
        members=tuple(members),
        shown=_shown(members),
        score=score,
        interval=interval(sampled),
        published=_published([top.result] if top else [m.result for m in members]),
        official_task=getattr(first, "official_task", ""),
        note="; ".join(dict.fromkeys(note for each in reports for note in _notes(each))),
        num_texts=sum(report.result.num_texts for report in parts),
        num_truncated=sum(report.result.num_truncated for report in parts),
        seconds=sum(report.result.seconds for report in parts),
        encode_seconds=sum(getattr(r.result, "encode_seconds", 0.0) for r in parts),
        num_items=num_items,
    )


def _notes(report: "TaskReport") -> Iterator[str]:
    """What is known of the data, then what was found in it."""
    if note := getattr(report.result, "note", ""):
        yield note
    yield from getattr(report.outcome, "notes", ())


def _main(report: "TaskReport") -> float:
    return float(report.result.scores[report.result.main_measure])


def _subset(report: "TaskReport") -> str:
    return getattr(report.result, "subset", "")


def _best_first(scored: Task | Member) -> tuple[bool, float]:
    """Sort key: the best score first, NaN last."""
    return (math.isnan(scored.score), -scored.score)


def _sampled(report: "TaskReport", seed: int) -> np.ndarray | None:
    """Bootstrap samples of the main score; None if it cannot be recomputed from the items."""
    outcome = report.outcome
    if outcome.paired is None or outcome.statistic is None or not len(outcome.paired):
        return None
    items = np.asarray(outcome.paired, float).reshape(len(outcome.paired), -1)
    if not abs(statistic_of(outcome.statistic, items) - _main(report)) < 1e-4:
        return None
    return bootstrap(items, outcome.statistic, seed=seed)


def _averaged(sampled: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Samples of the mean over subsets, which are resampled independently."""
    known = [one for one in sampled if one is not None]
    if len(known) < len(sampled):
        return None
    shortest = min(map(len, known))
    return np.mean([one[:shortest] for one in known], axis=0)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _published(results: Sequence[Any]) -> float | None:
    known = [getattr(result, "published", None) for result in results]
    scores = [score for score in known if score is not None]
    return _mean(scores) if len(scores) == len(known) else None


def _check_published(result: Any) -> None:
    published = getattr(result, "published", None)
    if published is not None and not abs(published) <= 1:
        raise InputError(
            f"report: {result.task}: the published score {published} is not a "
            "fraction; divide by 100: 0.7237 for 72.37"
        )


def _shown(members: Sequence[Member]) -> tuple[Member, ...]:
    """The members with details: all, or the 5 best and the 5 worst."""
    half = MAX_SHOWN // 2
    few = members if len(members) <= MAX_SHOWN else [*members[:half], *members[-half:]]
    return tuple(
        Member(one.anchor, one.report, one.sampled, _details(one.report.outcome)) for one in few
    )


def _details(outcome: Outcome) -> Details:
    found, unit = slices.length_slices(outcome)
    values = np.array([item.value for item in outcome.items], float)
    known = values[np.isfinite(values)]
    own = len(known) and abs(known.mean() - outcome.main_score) < 1e-6
    return Details(
        slices=found,
        unit=unit,
        sliced=outcome.main_measure if slices.fits(outcome) else "",
        worst=slices.worst(outcome),
        labels=slices.worst_labels(outcome),
        measure=outcome.main_measure if own else "",
        agreement=slices.is_agreement(outcome.items),
        num_zero=int((values == 0).sum()),
        num_full=int((values >= 1).sum()),
    )
