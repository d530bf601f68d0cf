"""Our scores beside published ones: how far apart, and why."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from polyvec.data.tasks.kinds import find_kind
from polyvec.data.tasks.named import OfficialName
from polyvec.errors import DataError
from polyvec.evaluate.selection import Chosen
from polyvec.evaluate.tasks import Result

# By how many points two correct implementations may differ: rounding; random draws of learners.
EXACT, DRAWN = 0.1, 1.0

Published = Mapping[OfficialName, float]  # main scores as fractions


@dataclass(frozen=True, slots=True)
class Row:
    """A task's mean over its subsets and the published mean, in points (times 100)."""

    task: str
    official_task: str
    kind: str
    num: int
    ours: float
    published: float
    largest: Result
    beyond: tuple[Result, ...]
    known_difference: str


def read_published(path: str | Path) -> dict[OfficialName, float]:
    """Published main scores, as fractions, by (task, split, subset).

    The file is JSON: {"scores": {task: {"split/subset": score}}}; NaN is skipped. Raises
    DataError for another form.
    """
    try:
        raw = json.loads(Path(path).read_text("utf-8"))
        found = {}
        for task, scores in raw["scores"].items():
            for place, score in scores.items():
                split, subset = place.split("/", 1)
                found[task, split, subset] = float(score)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(
            f'{path}: not published scores, {{"scores": {{task: {{"split/subset": score}}}}}}'
        ) from None
    return {key: score for key, score in found.items() if math.isfinite(score)}


def with_scores(chosen: Iterable[Chosen], scores: Published) -> list[Chosen]:
    """What was chosen by name, and of the others what has a published score."""
    found = [each for each in chosen if each.by_name or each.official_name in scores]
    if not found:
        raise DataError("none of the tasks has a published score")
    return found


def join(result: Result, chosen: Chosen, scores: Published) -> Result:
    """The result with its official task, the score published there, and the known difference."""
    if chosen.task is None:
        return result
    return replace(
        result,
        official_task=chosen.official_name[0],
        published=scores.get(chosen.official_name),
        known_difference=chosen.task.naming.known_difference,
    )


def tolerance(kind: str) -> float:
    """Points by which a score may differ from the published one without a known difference."""
    found = find_kind(kind)
    return DRAWN if found is not None and found.draws else EXACT


def beyond(result: Result) -> bool:
    """Whether a result differs from the published score by more than its kind's tolerance."""
    return result.difference is not None and abs(100 * result.difference) > tolerance(result.kind)


def rows(results: Iterable[Result]) -> list[Row]:
    """A row for each task, over the subsets that have a published score."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.published is not None:
            groups.setdefault(result.task, []).append(result)
    return [_row(group) for group in groups.values()]


def unexplained(results: Iterable[Result]) -> list[Result]:
    """Results beyond tolerance whose task has no known difference."""
    return [result for result in results if beyond(result) and not result.known_difference]


def markdown(model: str, results: Sequence[Result]) -> str:
    """The table, and each subset beyond its tolerance."""
    lines = [
        f"# {model}: measured here and published",
        "",
        "Main scores times 100, measured on local copies of the data by the published protocol. A "
        "task with several subsets shows their mean and the largest difference of a subset. The "
        f"tolerance is {EXACT}, and {DRAWN} for classification and clustering, which draw samples.",
        "",
        "| local data | official task | measure | sets | measured | published | difference "
        "| largest | beyond tolerance | known difference |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: | --- |",
    ]
    lines += [_line(row) for row in rows(results)]
    missing = unexplained(results)
    lines += ["", f"Beyond tolerance without a known difference: {len(missing)}."]
    for row in rows(results):
        if row.beyond and row.num > 1 and not row.known_difference:
            found = "; ".join(_subset(result) for result in row.beyond)
            lines += ["", f"`{row.task}`, beyond tolerance: {found}."]
    return "\n".join(lines) + "\n"


def _row(group: list[Result]) -> Row:
    largest = max(group, key=lambda result: abs(result.difference or 0))
    return Row(
        task=group[0].task,
        official_task=group[0].official_task,
        kind=group[0].kind,
        num=len(group),
        ours=100 * sum(result.main_score for result in group) / len(group),
        published=100 * sum(result.published or 0 for result in group) / len(group),
        largest=largest,
        beyond=tuple(result for result in group if beyond(result)),
        known_difference=group[0].known_difference,
    )


def _line(row: Row) -> str:
    shown = _subset(row.largest) if row.num > 1 else ""
    difference = row.known_difference or "**none**" if row.beyond else ""
    return (
        f"| {row.task} | {row.official_task} | {row.largest.main_measure} | {row.num} "
        f"| {row.ours:.2f} | {row.published:.2f} | {row.ours - row.published:+.2f} "
        f"| {shown} | {len(row.beyond)} | {difference} |"
    )


def _subset(result: Result) -> str:
    return f"{result.subset} {100 * (result.difference or 0):+.2f}"
