"""The report as one HTML page: this module prepares what the template shows.

The page has no scripts and loads nothing; its Content-Security-Policy forbids both. Texts of data
sets are escaped by Jinja's autoescape.
"""

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvec.errors import MissingExtraError
from polyvec.evaluate.report import charts, listing, slices, wording
from polyvec.evaluate.report.facts import Member, Task, facts, groups
from polyvec.evaluate.report.notices import notices

if TYPE_CHECKING:
    from polyvec.evaluate.report.contents import Report

PLACES = 12  # tasks that a notice lists before the rest is collapsed


def render(report: "Report") -> str:
    """The page; the same report always gives the same bytes."""
    found = facts(report)
    page = _template().render(
        facts=found,
        notices=notices(found),
        report=report,
        settings=listing.flat(report.settings),
        comparison=_comparison(report),
        scale=charts.score_scale([task.score for task in found.tasks]),
        places=PLACES,
    )
    return re.sub(r"\n\s*\n", "\n", page).strip() + "\n"


@functools.cache
def _template() -> Any:
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("jinja2", "evaluate", "the HTML report") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("between", "clean", "cut", "duration", "measure_name", "percent", "plain", "points")
    environment.filters.update({name: getattr(wording, name) for name in (*names, "signed")})
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.globals.update(
        bar=bar,
        dumbbell=dumbbell,
        found=listing.documents,
        geometry=listing.geometry,
        histogram=histogram,
        kind_names=wording.kind_names,
        label_bar=label_bar,
        number_of=wording.number_of,
        scatter=scatter,
        scores=listing.scores,
        separation=listing.separation,
        matrices=listing.matrices,
        missing=listing.missing,
        wrong_label=slices.wrong_label,
    )
    return environment.get_template("template.html.jinja")


def bar(
    scored: Task | Member | slices.Slice, scale: charts.Scale, published: float | None = None
) -> str:
    """A bar with its text label."""
    label = wording.points(scored.score)
    if scored.interval:
        label += f", 95 % interval {wording.between(scored.interval)}"
    if published is not None:
        label += f", published {wording.points(published)}"
    return charts.bar(
        scored.score, label, scale=scale, interval=scored.interval, published=published
    )


def label_bar(row: slices.LabelScore) -> str:
    """The bar of a label, which has no interval."""
    return charts.bar(row.score, wording.points(row.score), scale=charts.Scale(0.0, 1.0))


def dumbbell(worst: slices.Worst) -> str:
    """The ranks of similarity and gold score on one line; empty if either is unknown."""
    similarity, gold = worst.similarity_place, worst.gold_place
    if similarity is None or gold is None or not np.isfinite([similarity, gold]).all():
        return ""
    label = f"similarity at {similarity:.0f} % of all pairs, gold score at {gold:.0f} %"
    return charts.dumbbell(similarity, gold, label)


def histogram(member: Member) -> dict[str, Any] | None:
    """The chart and its legend (name, number, mean); None without similarities."""
    found = groups(member.report.outcome)
    if not found:
        return None
    legend = [
        (wording.clean(name), len(values), f"{values.mean():.3f}")
        for name, values in found[: charts.NUM_GROUPS]
    ]
    summary = "; ".join(f"{name}: {num:,}, mean {mean}" for name, num, mean in legend)
    return {
        "chart": charts.histogram(found, f"Histogram of similarities. {summary}"),
        "legend": legend,
        "left_out": len(found) - len(legend),
    }


def scatter(member: Member) -> str:
    """Similarity against gold score, with the worst pairs marked; empty if gold has two values."""
    items, details = member.report.outcome.items, member.details
    if not details or not details.agreement or len({item.gold for item in items}) < 3:
        return ""
    gold = np.array([item.gold for item in items], float)
    value = np.array([item.value for item in items], float)
    if not np.isfinite(gold).all() or not np.isfinite(value).any():
        return ""
    shown = {id(worst.item) for worst in details.worst}
    marked = [i for i, item in enumerate(items) if id(item) in shown]
    label = f"Similarity of each of {len(items):,} pairs against its gold score"
    return charts.scatter(gold, value, marked, label)


def _comparison(report: "Report") -> list[dict[str, Any]]:
    """Rows of the comparison; the largest gain of the second model comes first."""
    rows = sorted(report.comparison, key=lambda row: -row.difference)
    known = [abs(x) for row in rows for x in (row.low, row.high, row.difference) if x == x]
    reach = max([0.01, *known])
    scale = charts.Scale(-reach, reach)
    return [
        {
            "row": row,
            "chart": charts.difference(
                row.low,
                row.difference,
                row.high,
                scale,
                f"{wording.signed(row.difference)}, 95 % interval "
                f"{wording.signed(row.low)} to {wording.signed(row.high)}",
            ),
        }
        for row in rows
    ]
