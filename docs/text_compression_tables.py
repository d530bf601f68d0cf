"""Tables of docs/compression.md on text compression, for generate.py."""

import json
import math
from pathlib import Path
from typing import Any

from polyvec.compress.text.sections import TEXT_COMPRESSOR
from polyvec.recipe import all_recipes

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "compress-text.json"
RATES = ("0.5", "0.25", "0.1")


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


def quality_table() -> str:
    """Answer kept and exact match by set, scorer and rate."""
    found = _results().get("quality", {})
    if not found:
        return "Not measured."
    head = " | ".join(f"kept at {rate} | exact match | nats" for rate in RATES)
    lines = [f"| contexts | scorer | {head} |", "| --- | --- |" + " ---: |" * 9]
    for name, rows in found.items():
        for scorer, row in rows.items():
            # The whole text, and none, have no rate.
            cells = _read(row) if "read" in row and "items" not in row else []
            for rate in RATES if "items" in row else ():
                cells += [_percent(row[rate]["kept"]), *_read(row[rate])[1:]]
            cells += [""] * (9 - len(cells))
            lines.append(f"| {name} | {scorer} | " + " | ".join(cells) + " |")
    counts = ", ".join(
        f"{name}: {row['items']} contexts, {row['read']} of them read"
        for name, rows in found.items()
        for row in [next((each for each in rows.values() if "items" in each), None)]
        if row is not None
    )
    return "\n".join([*lines, "", f"Percent, and nats a token. {counts}."])


def _read(row: dict[str, Any]) -> list[str]:
    """Cells of what the reader made of a text; the first is empty."""
    nats = row.get("nats")
    return ["", _percent(row.get("exact match")), "" if nats is None else f"{nats:.2f}"]


def speed_table() -> str:
    """LLMLingua-2's selection beside the package llmlingua's."""
    found = _results().get("speed", {})
    if not found:
        return "Not measured."
    lines = [
        "| tokens | tokens kept by both | whole call: llmlingua | polyvec | times as fast "
        "| selection alone: llmlingua | polyvec | times as fast |",
        "| ---: |" + " ---: |" * 7,
    ]
    for length, row in sorted(found.items(), key=lambda each: int(each[0])):
        cells = [f"{row['polyvec tokens']:,}"]
        for prefix in ("", "selection "):
            cells += [
                f"{1000 * row[f'{who} {prefix}s']:.1f} ms" for who in ("llmlingua", "polyvec")
            ]
            cells.append(str(row[f"{prefix}ratio"]))
        lines.append(f"| {int(length):,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cost_table() -> str:
    """Prefill of whole and of compressed contexts, and what the compression itself takes."""
    found = _results().get("cost", {})
    if not found:
        return "Not measured."
    lines = [
        "| context | compressed by | tokens read | prefill, s | compression, s | saved, s |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for length, rows in sorted(found.items(), key=lambda each: int(each[0])):
        whole = rows["whole"]["prefill s"]
        for name, row in rows.items():
            extra = row.get("compression s")
            saved = "" if extra is None else f"{whole - row['prefill s'] - extra:+.2f}"
            cells = [f"{row['tokens']:,}", f"{row['prefill s']:.2f}"]
            cells += ["" if extra is None else f"{extra:.2f}", saved]
            lines.append(f"| {int(length):,} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_cost_table() -> str:
    """Prefill of whole contexts and of memories of them."""
    found = _results().get("memory cost", {})
    if not found:
        return "Not measured."
    lines = [
        "| context | memory | vectors | prefill, s | whole text, s | making it, s | pays after |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for length, rows in sorted(found.items(), key=lambda each: int(each[0])):
        whole = rows["whole"]["prefill s"]
        for name, row in rows.items():
            if name == "whole":
                continue
            saved = whole - row["prefill s"]
            pays = f"{math.ceil(row['compression s'] / saved)}" if saved > 0 else "never"
            lines.append(
                f"| {int(length):,} | {name} | {row['tokens']:,} | {row['prefill s']:.2f} | "
                f"{whole:.2f} | {row['compression s']:.2f} | {pays} |"
            )
    return "\n".join(lines)


def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}"
