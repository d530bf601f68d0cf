"""The report as one HTML page: what the template is given. The looks are in the template.

The page has no script, and loads nothing: its Content-Security-Policy forbids both. Texts of
data sets are data, and autoescape keeps them so.
"""

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvec.errors import MissingExtraError
from polyvec.evaluate.report import charts, slices, words
from polyvec.evaluate.report.facts import Member, Task, facts, groups
from polyvec.evaluate.report.listing import (
    documents,
    flat,
    geometry,
    matrices,
    missing,
    scores,
    separation,
)
from polyvec.evaluate.report.notices import notices

if TYPE_CHECKING:
    from polyvec.evaluate.report.contents import Report

PLACES = 12  # shown of a notice before the rest is folded


def render(report: "Report") -> str:
    """The page, the same bytes for the same report."""
    found = facts(report)
    page = _template().render(
        facts=found,
        notices=notices(found),
        report=report,
        settings=flat(report.settings),
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
        raise MissingExtraError("jinja2", "evaluate", "The report as a page") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("between", "clean", "cut", "duration", "measure_name", "percent", "plain", "points")
    environment.filters.update({name: getattr(words, name) for name in (*names, "signed")})
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.globals.update(
        bar=bar,
        dumbbell=dumbbell,
        found=documents,
        geometry=geometry,
        histogram=histogram,
        kind_words=words.kind_words,
        label_bar=label_bar,
        number_of=words.number_of,
        scatter=scatter,
        scores=scores,
        separation=separation,
        matrices=matrices,
        missing=missing,
        wrong_label=slices.wrong_label,
    )
    return environment.get_template("template.html.jinja")


def bar(scored: Task | Member | slices.Slice, scale: charts.Scale, published=None):
    """A bar with what it shows in words."""
    label = words.points(scored.score)
    if scored.interval:
        label += f", 95 % interval {words.between(scored.interval)}"
    if published is not None:
        label += f", published {words.points(published)}"
    return charts.bar(
        scored.score, label, scale=scale, interval=scored.interval, published=published
    )


def label_bar(row: slices.LabelScore):
    """A label's bar; labels have no intervals."""
    return charts.bar(row.score, words.points(row.score), scale=charts.Scale(0.0, 1.0))


def dumbbell(worst: slices.Worst):
    """Where similarity and gold stand, in one line; nothing if they stand nowhere."""
    similarity, gold = worst.similarity_place, worst.gold_place
    if similarity is None or gold is None or not np.isfinite([similarity, gold]).all():
        return ""
    label = f"similarity at {similarity:.0f} % of all pairs, gold score at {gold:.0f} %"
    return charts.dumbbell(similarity, gold, label)


def histogram(member: Member):
    """The chart and its legend (name, number, mean); nothing without similarities."""
    found = groups(member.report.outcome)
    if not found:
        return None
    legend = [
        (words.clean(name), len(values), f"{values.mean():.3f}")
        for name, values in found[: charts.NUM_GROUPS]
    ]
    told = "; ".join(f"{name}: {num:,}, mean {mean}" for name, num, mean in legend)
    return {
        "chart": charts.histogram(found, f"Histogram of similarities. {told}"),
        "legend": legend,
        "left_out": len(found) - len(legend),
    }


def scatter(member: Member):
    """Similarity over gold score with the worst pairs marked; nothing where gold has two values."""
    items, details = member.report.outcome.items, member.details
    if not details or not details.agreement or len({item.gold for item in items}) < 3:
        return ""
    gold = np.array([item.gold for item in items], float)
    value = np.array([item.value for item in items], float)
    if not np.isfinite(gold).all() or not np.isfinite(value).any():
        return ""
    shown = {id(worst.item) for worst in details.worst}
    marked = [i for i, item in enumerate(items) if id(item) in shown]
    label = f"Similarity of each of {len(items):,} pairs over its gold score"
    return charts.scatter(gold, value, marked, label)


def _comparison(report: "Report") -> list[dict[str, Any]]:
    """Rows of the comparison, the largest gain of the second model first."""
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
                f"{words.signed(row.difference)}, 95 % interval "
                f"{words.signed(row.low)} to {words.signed(row.high)}",
            ),
        }
        for row in rows
    ]
