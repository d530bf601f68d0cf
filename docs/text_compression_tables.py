"""Tables of docs/compression.md on text compression, for generate.py."""

from pathlib import Path

from polyvec.compress.text.sections import TEXT_COMPRESSOR
from polyvec.recipe import all_recipes

ROOT = Path(__file__).resolve().parents[1]


def methods_table() -> str:
    """Every recipe with a text compressor: its parts, and what differs from the paper."""
    lines = [
        "| method | system | scorer or writer | unit | budget without options "
        "| differs from the paper |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for recipe in all_recipes():
        parts = recipe[TEXT_COMPRESSOR]
        if parts is None:
            continue
        kind = dict(parts.scorer or parts.writer or {})
        settings = ", ".join(
            f"{key} {value}" for key, value in kind.items() if key not in ("kind", "model")
        )
        names = [f"`{kind['kind']}`" + (f" ({settings})" if settings else "")]
        names += [f"after `{each['scorer']['kind']}` of {each['unit']}s" for each in parts.coarse]
        unit = parts.unit if parts.scorer else "a new text"
        budget = [f"rate {parts.rate:g}"] if parts.rate else []
        budget += [] if parts.threshold is None else [f"threshold {parts.threshold:g}"]
        name = f"[`{recipe.key}`](../{recipe.path.relative_to(ROOT)})"
        row = [name, f"{recipe.system.name}, {recipe.system.paper}", ", ".join(names), unit]
        lines.append("| " + " | ".join([*row, ", ".join(budget), recipe.system.differs]) + " |")
    return "\n".join(lines)
