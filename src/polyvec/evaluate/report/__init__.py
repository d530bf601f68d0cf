"""What a run found, as a page for a person: one HTML file, or Markdown for a code host.

Numbers are made in intervals.py and slices.py, put together in facts.py and shown by page.py and
markdown_page.py. Both forms say the same: scores with their intervals, what must not be missed,
slices by length, the worst items with their texts, similarities and the vectors' geometry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from polyvec.storage.files import atomic_file

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
    stands: bool


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


def html(report: Report) -> str:
    """One page that needs nothing but itself. Raises InputError for a report without tasks."""
    from polyvec.evaluate.report.page import render

    return render(report)


def markdown(report: Report) -> str:
    """The same facts as Markdown (GitHub's). Raises InputError for a report without tasks."""
    from polyvec.evaluate.report.markdown_page import render

    return render(report)


def write_html(path: str | Path, report: Report) -> None:
    """The page as a file, whole or not at all."""
    _write(path, html(report))


def write_markdown(path: str | Path, report: Report) -> None:
    """The Markdown as a file, whole or not at all."""
    _write(path, markdown(report))


def _write(path: str | Path, text: str) -> None:
    with atomic_file(Path(path), "wb") as file:
        file.write(text.encode())
