"""Our scores beside published ones: how far apart, and why."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polyvec.evaluate.tasks import Result

# What two right implementations may differ by, in points: rounding; and the draws of learners.
EXACT, DRAWN = 0.1, 1.0
DRAWN_KINDS = ("classification", "clustering")


@dataclass(frozen=True, slots=True)
class Row:
    """A task with all its subsets beside what was published of them, in points (times 100)."""

    task: str
    official_task: str
    kind: str
    num: int
    ours: float
    published: float
    largest: Result
    beyond: tuple[Result, ...]
    known_difference: str


def tolerance(kind: str) -> float:
    """Points by which a score may differ from the published one without a cause."""
    return DRAWN if kind in DRAWN_KINDS else EXACT


def beyond(result: Result) -> bool:
    """Whether a result differs from what was published by more than its kind's tolerance."""
    return result.difference is not None and abs(100 * result.difference) > tolerance(result.kind)


def rows(results: Iterable[Result]) -> list[Row]:
    """A row a task, of those of its subsets that were published."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.published is not None:
            groups.setdefault(result.task, []).append(result)
    return [_row(group) for group in groups.values()]


def unexplained(results: Iterable[Result]) -> list[Result]:
    """Results beyond tolerance whose task names no cause."""
    return [result for result in results if beyond(result) and not result.known_difference]


def markdown(model: str, results: Sequence[Result]) -> str:
    """The table, and each subset beyond its tolerance."""
    lines = [
        f"# {model}: measured here and published",
        "",
        "Main scores times 100, measured on local copies of the data by the published protocol; a "
        "task of several subsets shows their mean, and the subset that differs most. A difference "
        f"may be {EXACT} (classification and clustering, which draw: {DRAWN}) without a cause.",
        "",
        "| data here | corresponds to | measure | sets | here | published | difference "
        "| largest | beyond | cause |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: | --- |",
    ]
    lines += [_line(row) for row in rows(results)]
    missing = unexplained(results)
    lines += ["", f"Beyond tolerance without a known cause: {len(missing)}."]
    for row in rows(results):
        if row.beyond and row.num > 1 and not row.known_difference:
            found = "; ".join(_subset(result) for result in row.beyond)
            lines += ["", f"`{row.task}`, beyond: {found}."]
    return "\n".join(lines) + "\n"


def _row(group: list[Result]) -> Row:
    largest = max(group, key=lambda result: abs(result.difference or 0))
    return Row(
        group[0].task,
        group[0].official_task,
        group[0].kind,
        len(group),
        100 * sum(result.main_score for result in group) / len(group),
        100 * sum(result.published or 0 for result in group) / len(group),
        largest,
        tuple(result for result in group if beyond(result)),
        group[0].known_difference,
    )


def _line(row: Row) -> str:
    shown = _subset(row.largest) if row.num > 1 else ""
    cause = row.known_difference or ("**not known**" if row.beyond else "")
    return (
        f"| {row.task} | {row.official_task} | {row.largest.main_measure} | {row.num} "
        f"| {row.ours:.2f} | {row.published:.2f} | {row.ours - row.published:+.2f} "
        f"| {shown} | {len(row.beyond)} | {cause if row.beyond else ''} |"
    )


def _subset(result: Result) -> str:
    return f"{result.subset} {100 * (result.difference or 0):+.2f}"
