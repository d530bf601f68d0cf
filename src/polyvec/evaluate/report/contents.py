"""What a report is made of: tasks with their scores, and the comparison of two models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyvec.evaluate.outcome import Outcome
    from polyvec.evaluate.tasks import Result


@dataclass(frozen=True, slots=True)
class TaskReport:
    """A task's scores, what they were made of, and the geometry of a sample of its vectors.

    Tasks of one name and split that differ in `result.subset` are shown as one. Where the
    items of `outcome` have more than one text, those after the first are the rest of a pair, or
    for queries what should have been found.
    """

    result: "Result"
    outcome: "Outcome"
    geometry: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Compared:
    """A row of two models' comparison: scores and their difference b - a, as fractions."""

    task: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float
    significant: bool


@dataclass(frozen=True, slots=True)
class Report:
    """All that a page shows. `created` is a date as it shall be printed: nothing reads the clock.

    `comparison` is of the two models named in `compared`. `notes` hold for the whole run, such
    as training data that a task's texts may have been part of.
    """

    model: str
    model_sha256: str
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    created: str
    tasks: tuple[TaskReport, ...]
    comparison: tuple[Compared, ...] = ()
    compared: tuple[str, str] = ("first", "second")
    notes: tuple[str, ...] = ()
