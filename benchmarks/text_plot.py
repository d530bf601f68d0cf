"""The plot of compress_text.py: what a reader makes of the text over what it costs, as SVG."""

from collections.abc import Iterator
from typing import Any

COLOURS = ("#444444", "#7aa6b8", "#0b6e99", "#b06a00", "#a0224c", "#5b8c2a", "#7a4fb5", "#c2a000")
COLOURS += ("#008b8b",)
WIDTH, HEIGHT, LEFT, TOP, RIGHT = 700, 260, 60, 34, 500
Curve = list[tuple[float, float]]


def drawn(found: dict[str, Any]) -> str:
    """Exact match and -log p over the tokens left, and seconds over the length of the context."""
    quality = found.get("quality", {})
    panels = [
        ("key-value: exact match, %, over tokens left, %", curves(quality, "key-value", 100)),
        (
            "squad: -log p of the answer, nats a token, over tokens left, %",
            curves(quality, "squad"),
        ),
        ("seconds of prefill and compression, over tokens of the context", seconds(found)),
    ]
    height = len(panels) * (HEIGHT + 70)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="{WIDTH}" height="{height}" '
        'fill="#ffffff"/>'
    )
    parts = [panel(title, lines, number) for number, (title, lines) in enumerate(panels)]
    return head + "".join(parts) + "</svg>\n"


def curves(quality: dict[str, Any], name: str, scale: float | None = None) -> dict[str, Curve]:
    """Points of each scorer; the whole text is at 100 %, none at 0."""
    measure = "exact match" if scale else "nats"
    rows = quality.get(name, {})
    found: dict[str, Curve] = {}
    for method, row in rows.items():
        points = sorted(_points(row, measure, scale or 1.0))
        if points:
            found[method] = points
    ends = [
        (place, (scale or 1.0) * rows[key][measure])
        for key, place in (("no text", 0.0), ("whole text", 100.0))
        if measure in rows.get(key, {})
    ]
    return {**found, "no text, whole text": ends} if ends else found


def _points(row: dict[str, Any], measure: str, scale: float) -> Iterator[tuple[float, float]]:
    for cell in row.values():
        if isinstance(cell, dict) and cell.get(measure) is not None:
            yield 100 * cell["rate"], scale * cell[measure]


def seconds(found: dict[str, Any]) -> dict[str, Curve]:
    lines: dict[str, Curve] = {}
    for length, rows in found.get("cost", {}).items():
        for name, row in rows.items():
            if not name.endswith("0.5"):
                whole = row["prefill s"] + row.get("compression s", 0.0)
                lines.setdefault(name, []).append((float(length), whole))
    return {name: sorted(points) for name, points in lines.items()}


def panel(title: str, lines: dict[str, Curve], number: int) -> str:
    points = [point for line in lines.values() for point in line]
    top = TOP + number * (HEIGHT + 70)
    parts = [f'<text x="{LEFT}" y="{top - 12}" font-weight="bold">{title}</text>']
    if not points:
        return "".join(parts)
    most_x, most_y = max(x for x, _ in points), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (RIGHT - LEFT) * x / most_x, top + HEIGHT * (1 - y / most_y)

    for step in range(5):
        x, y = place(most_x * step / 4, most_y * step / 4)
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        label = f"{most_y * step / 4:.3g}"
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        label = f"{most_x * step / 4:.4g}"
        parts.append(
            f'<text x="{x:.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{label}</text>'
        )
    for row, ((name, line), colour) in enumerate(zip(lines.items(), COLOURS * 2, strict=False)):
        dots = [place(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        dash = ' stroke-dasharray="2 4"' if name.startswith("no text") else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in dots]
        parts.append(
            f'<text x="{RIGHT + 12}" y="{top + 16 * row + 8}" fill="{colour}">{name}</text>'
        )
    return "".join(parts)
