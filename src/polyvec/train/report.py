"""What a run leaves for people: the curve as numbers and as a picture, the model card."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from polyvec.storage.files import atomic_file

CURVE, PICTURE = "curve.csv", "curve.svg"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, GAP = 720, 220, 64, 28, 26, 24
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
# Columns that say how fast it went, not how well.
SPEED = {"tokens_per_s", "mfu", "seconds"}
SCORE = "eval_"


class Curve:
    """A table with a row for each report of the loop, kept on disk."""

    def __init__(self, folder: Path, *, until: int | None = None) -> None:
        """Goes on with what is there up to the step `until`; None starts anew."""
        self.folder = folder
        self.rows: list[dict[str, float]] = []
        if until is not None and (folder / CURVE).is_file():
            self.rows = [row for row in read_curve(folder / CURVE) if row["step"] <= until]

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """A row; values of the same step are joined."""
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1] |= values
        else:
            self.rows.append({"step": step, **values})
        self._write()

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        stream = io.StringIO()
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in row.items()} for row in self.rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / CURVE, "w") as file:
            file.write(stream.getvalue())

    def draw(self, title: str) -> None:
        """The picture of the loss and of the scores."""
        with atomic_file(self.folder / PICTURE, "w") as file:
            file.write(picture(self.rows, title))


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a curve; empty cells are left out."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def _short(value: float) -> str:
    return f"{value:.7g}"


def picture(rows: Sequence[Mapping[str, float]], title: str) -> str:
    """An SVG: a panel with the loss, and one with the scores if there are any."""
    scores = sorted({name for row in rows for name in row if name.startswith(SCORE)})
    panels = [("loss", ["loss"])] + ([("score", scores)] if scores else [])
    height = len(panels) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" role="img">'
        f"<title>{escape(title)}</title>"
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    ]
    for place, (label, names) in enumerate(panels):
        parts.append(_panel(rows, names, label, place * (HEIGHT + GAP)))
    return "".join(parts) + "</svg>\n"


def _panel(rows: Sequence[Mapping[str, float]], names: Sequence[str], label: str, top: int) -> str:
    lines = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    values = [y for points in lines.values() for _, y in points]
    low, high = min(values), max(values)
    high = high if high > low else low + 1
    last = max(x for points in lines.values() for x, _ in points) or 1

    def at(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - 10) * x / last
        down = top + TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low)
        return f"{across:.1f},{down:.1f}"

    base = top + HEIGHT - BOTTOM
    parts = [
        f'<path d="M{LEFT} {top + TOP}V{base}H{WIDTH - 10}" fill="none" stroke="#999"/>',
        f'<text x="{LEFT - 6}" y="{top + TOP + 4}" text-anchor="end">{high:.4g}</text>',
        f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">{low:.4g}</text>',
        f'<text x="{WIDTH - 10}" y="{base + 16}" text-anchor="end">step {last:.0f}</text>',
        f'<text x="{LEFT}" y="{top + 16}" font-weight="bold">{escape(label)}</text>',
    ]
    for place, (name, points) in enumerate(lines.items()):
        colour = COLOURS[place % len(COLOURS)]
        path = " ".join(at(x, y) for x, y in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        if len(lines) > 1:
            x = LEFT + 60 + 160 * place
            shown = escape(name.removeprefix(SCORE))
            parts.append(f'<text x="{x}" y="{top + 16}" fill="{colour}">{shown}</text>')
    return "".join(parts)


def card(command: str, stages: Sequence[Mapping[str, Any]]) -> str:
    """The part of a model card that says how the model was trained.

    Of each stage: "name", "kind", "trained" (what), "steps", "data" (rows by data set), "scores"
    (by name, before and after), "settings".
    """
    lines = ["## Training", ""]
    if command:
        lines += ["```", command, "```", ""]
    for number, stage in enumerate(stages, 1):
        lines += [f"### Stage {number}: {stage['name']}", ""]
        lines += [f"{stage['steps']} steps; {stage['trained']}.", ""] if "steps" in stage else []
        if stage.get("data"):
            lines += ["| data set | rows |", "| --- | ---: |"]
            lines += [f"| {_cell(name)} | {rows:,} |" for name, rows in stage["data"].items()]
            lines.append("")
        if stage.get("scores"):
            lines += ["| score | before | after |", "| --- | ---: | ---: |"]
            for name, (before, after) in stage["scores"].items():
                lines.append(f"| {_cell(name)} | {_figure(before)} | {_figure(after)} |")
            lines.append("")
        settings = json.dumps(stage.get("settings", {}), sort_keys=True)
        lines += [f"Settings: `{settings}`", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def add_to_card(path: Path, text: str) -> None:
    """Append a part to a model's README.md."""
    before = path.read_text("utf-8")
    with atomic_file(path, "w") as file:
        file.write(before.rstrip() + "\n\n" + text)
