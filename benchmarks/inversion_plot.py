"""The plot of inversion.py: what the strongest attacker reads behind each defence, over utility."""

import math
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, RIGHT, GAP = 800, 330, 56, 40, 520, 70
PANELS = (
    ("words", "F1 of content words, %, strongest attacker"),
    ("bleu", "BLEU of the inverter's texts, strongest attacker"),
)
COLOURS = {
    "fixed": "#7aa6b8",
    "adaptive": "#0b6e99",
    "leaked 1000": "#b06a00",
    "retrained": "#a0224c",
}
Point = tuple[str, str, float, float]


def drawn(found: dict[str, Any]) -> str:
    """Two panels over the nDCG@10 (or the last measure) that a defence leaves, as SVG."""
    cells = found.get("defence", {})
    height = len(PANELS) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="{WIDTH}" height="{height}" '
        'fill="#ffffff"/>'
    ]
    for number, (measure, title) in enumerate(PANELS):
        points = strongest(cells, measure)
        chance = found.get("inverter", {}).get("baselines", {}).get("another text's vector", {})
        base = chance.get(measure) if measure == "bleu" else None
        parts.append(panel(f"{title}, over {over(cells)}, %", points, base, number))
    return "".join(parts) + "</svg>\n"


def over(cells: dict[str, Any]) -> str:
    return list(next(iter(cells.values()))["utility"])[-1] if cells else "utility"


def strongest(cells: dict[str, Any], measure: str) -> list[Point]:
    """Of each defence its name, what the attacker knows who finds most, utility, and leak, in %."""
    found = []
    for name, cell in cells.items():
        by = {knows: row[measure] for knows, row in cell["by"].items() if measure in row}
        knows = max(by, key=lambda each: by[each])
        found.append((name, knows, 100 * cell["utility"][over(cells)], 100 * by[knows]))
    return found


def panel(title: str, points: list[Point], base: float | None, number: int) -> str:
    top = TOP + number * (HEIGHT + GAP)
    parts = [f'<text x="{LEFT}" y="{top - 14}" font-weight="bold">{title}</text>']
    if not points:
        return "".join(parts)
    most = 4.0 * math.ceil(max(y for *_, y in points) / 3.8)  # room above, and whole ticks

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (RIGHT - LEFT) * x / 100, top + HEIGHT * (1 - y / most)

    for step in range(5):
        x, y = place(25.0 * step, most * step / 4)
        parts += [
            f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>',
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{most * step / 4:.3g}</text>',
            f'<text x="{x:.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{25 * step}</text>',
        ]
    if base is not None:
        _, y = place(0, 100 * base)
        parts.append(
            f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#444444" '
            f'stroke-dasharray="2 4"/><text x="{LEFT + 4}" y="{y - 4:.1f}" fill="#444444">'
            "another text's vector</text>"
        )
    # Labels stand in a column, in the order of their points, and a thin line leads to each.
    ordered = sorted(points, key=lambda each: -each[3])
    for row, (name, knows, utility, leak) in enumerate(ordered):
        (x, y), colour = place(utility, leak), COLOURS.get(knows, "#444444")
        at = top + 6 + row * (HEIGHT - 6) / max(1, len(ordered) - 1)
        parts += [
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{RIGHT + 8}" y2="{at - 4:.1f}" '
            f'stroke="{colour}" stroke-width="0.5" opacity="0.6"/>',
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>',
            f'<text x="{RIGHT + 12}" y="{at:.1f}" fill="{colour}">{name} ({knows})</text>',
        ]
    return "".join(parts)
