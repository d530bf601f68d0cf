"""Charts as small inline SVG. Positions are percentages, so that a chart fits any width.

Colours come from classes of the page's style sheet, which has a light and a dark scheme. Each
chart has a text label, and the page shows the same numbers beside it.
"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from polyvec.evaluate.report.intervals import Interval

NUM_BINS = 40
NUM_GROUPS = 6  # colours that readers can distinguish
MAX_POINTS = 700  # more only make the page larger


class Scale:
    """Maps a score to a position in percent."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        place = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, place)), 2)


def score_scale(scores: Sequence[float]) -> Scale:
    """From 0 to 100, or from -100 if a score is negative."""
    return Scale(-1.0 if any(score < 0 for score in scores) else 0.0, 1.0)


def bar(
    score: float,
    label: str,
    *,
    scale: Scale,
    interval: Interval | None = None,
    published: float | None = None,
) -> Markup:
    """A bar from 0 to the score, the interval as a whisker, the published score as a tick."""
    parts = ['<rect class="track" x="0" y="5" width="100%" height="10" rx="2"/>']
    if score == score:  # not NaN
        start, end = sorted((scale(0.0), scale(score)))
        parts.append(
            f'<rect class="fill" x="{start:g}%" y="5" width="{end - start:g}%" height="10" rx="2"/>'
        )
    if interval:
        low, high = scale(interval[0]), scale(interval[1])
        parts += [_line(low, high, 10, 10), *(_line(x, x, 6.5, 13.5) for x in (low, high))]
    if published is not None:
        place = scale(published)
        parts.append(f'<line class="published" x1="{place:g}%" x2="{place:g}%" y1="0" y2="20"/>')
    if scale.low < 0:
        parts.append(_line(scale(0.0), scale(0.0), 0, 20, "zero"))
    return _svg("bar", 20, label, parts)


def difference(low: float, value: float, high: float, scale: Scale, label: str) -> Markup:
    """A difference as a dot on its interval, with a line at zero."""
    dots = f'<circle class="dot" cx="{scale(value):g}%" cy="10" r="4.5"/>' if value == value else ""
    whisker = _line(scale(low), scale(high), 10, 10) if low == low and high == high else ""
    return _svg("difference", 20, label, [_line(scale(0), scale(0), 0, 20, "zero"), whisker, dots])


def dumbbell(similarity: float, gold: float, label: str) -> Markup:
    """Two positions from 0 to 100 on a line: a dot (similarity) and a diamond (gold score)."""
    a, b = round(similarity, 1), round(gold, 1)
    return _svg(
        "dumbbell",
        14,
        label,
        [
            '<rect class="track" x="0" y="6" width="100%" height="2" rx="1"/>',
            _line(min(a, b), max(a, b), 7, 7, "span"),
            f'<svg class="spot" x="{b:g}%" y="7"><path class="gold" d="M0-6 6 0 0 6-6 0z"/></svg>',
            f'<svg class="spot" x="{a:g}%" y="7"><circle class="dot" r="5"/></svg>',
        ],
    )


def histogram(groups: Sequence[tuple[str, np.ndarray]], label: str) -> Markup:
    """Overlaid histograms, normalised by group so that groups of any size can be compared."""
    groups = groups[:NUM_GROUPS]
    values = np.concatenate([values for _, values in groups])
    ticks = axis(float(values.min()), float(values.max()))
    edges = np.linspace(ticks[0], ticks[-1], NUM_BINS + 1)
    shares = [np.histogram(values, edges)[0] / len(values) for _, values in groups]
    top = max(float(share.max()) for share in shares)
    curves, means, scale = [], [], Scale(ticks[0], ticks[-1])
    for number, (share, (_, values)) in enumerate(zip(shares, groups, strict=True)):
        steps = "".join(f"V{y:g}h{100 / NUM_BINS:g}" for y in np.round(100 - 96 * share / top, 1))
        curves.append(f'<path class="area g{number}" d="M0 100{steps}V100z"/>')
        curves.append(f'<path class="edge g{number}" d="M0 100{steps}V100"/>')
        place = scale(float(values.mean()))
        means.append(_line(place, place, "0", "100%", f"mean g{number}"))
    return _framed("histogram", 170, curves, label, ticks, plain=means)


def scatter(x: np.ndarray, y: np.ndarray, marked: Sequence[int], label: str) -> Markup:
    """A point for each finite x and y; an evenly spaced selection if there are many.

    All points in `marked` are drawn, larger and in another colour.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    across, up = (axis(float(v[finite].min()), float(v[finite].max())) for v in (x, y))
    right, above = Scale(across[0], across[-1]), Scale(up[0], up[-1])
    step = max(1, -(-len(x) // MAX_POINTS))
    paths = []
    for kind, rows in (("points", range(0, len(x), step)), ("marked", marked)):
        places = [(right(float(x[i])), 100 - above(float(y[i]))) for i in rows if finite[i]]
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in places)
        paths.append(f'<path class="{kind}" d="{dots}"/>')
    return _framed("scatter", 230, paths, label, across, up)


def axis(low: float, high: float) -> list[float]:
    """Four to seven evenly spaced round numbers whose range includes both ends."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    unit = 10.0 ** np.floor(np.log10((high - low) / 6))
    for step in (unit * factor for factor in (1, 2, 2.5, 5, 10, 20)):
        first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
        if last - first <= 6:
            break
    return [float(np.round(step * number, 9)) + 0.0 for number in np.arange(first, last + 1)]


def _framed(
    kind: str,
    height: int,
    stretched: Sequence[str],
    label: str,
    across: Sequence[float],
    up: Sequence[float] = (),
    *,
    plain: Sequence[str] = (),
) -> Markup:
    """A plot with tick labels below and, if `up` is given, at its left.

    `stretched` elements use a viewBox of 100 x 100 that stretches with the plot; `plain` elements
    use percentages, which keeps the width of their lines.
    """
    lines, texts = [], []
    for value, place in zip(across, np.linspace(0, 100, len(across)), strict=True):
        lines.append(_line(place, place, "0", "100%", "tick"))
        anchor = "start" if place == 0 else "end" if place == 100 else "middle"
        texts.append(
            f'<text x="{place:g}%" y="{height - 5}" text-anchor="{anchor}">{value:g}</text>'
        )
    inside = height - 26
    for value, place in zip(up, np.linspace(100, 0, len(up)), strict=True):
        lines.append(_line(0, 100, f"{place:g}%", f"{place:g}%", "tick"))
        y = 8 + inside * place / 100
        texts.append(f'<text x="-7" y="{y:.0f}" text-anchor="end">{value:g}</text>')
    parts = [
        f'<svg y="4" width="100%" height="{inside}">',
        *lines,
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%">',
        *stretched,
        "</svg>",
        *plain,
        _line(0, 100, "100%", "100%", "axis"),
        "</svg>",
        *texts,
    ]
    return _svg(kind, height, label, parts)


def _svg(kind: str, height: int, label: str, parts: Sequence[str]) -> Markup:
    text = escape(label)
    head = f'<svg class="{kind}" width="100%" height="{height}" role="img" aria-label="{text}">'
    return Markup(head + "".join(parts) + "</svg>")


def _line(x1: float, x2: float, y1: object, y2: object, kind: str = "whisker") -> str:
    return f'<line class="{kind}" x1="{x1:g}%" x2="{x2:g}%" y1="{y1}" y2="{y2}"/>'
