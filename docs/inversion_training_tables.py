"""Tables of docs/inversion.md on what training gives away, for generate.py."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "inversion-training.json"
MISSING = "Not measured."


def gradients_table() -> str:
    """F1 of the token sets that gradient attacks read, by model and batch."""
    found = _results()
    cells = found.get("gradients", {})
    if not cells:
        return MISSING
    ways = list(dict.fromkeys(way for cell in cells.values() for row in _rows(cell).values()
                              for way in row if way not in ("batches", "tokens")))  # fmt: skip
    lines = [
        "| model | batch | tokens | " + " | ".join(ways) + " |",
        "| --- | --- | ---: |" + " ---: |" * len(ways),
    ]
    for model, cell in cells.items():
        for name, row in _rows(cell).items():
            shown = [_percent(row[way]) if way in row else "" for way in ways]
            lines.append(f"| {model} | {name} | {row['tokens']:.0f} | " + " | ".join(shown) + " |")
    if lamps := found.get("lamp", {}):
        lines += [
            "",
            "| LAMP on | texts | token F1 | ROUGE-L | whole text | distance found, of the text |",
            "| --- | ---: |" + " ---: |" * 4,
        ]
        for model, row in lamps.items():
            shown = [_percent(row[name]) for name in ("f1", "rouge l", "exact")]
            both = f"{row['distance']:.4f}, {row['distance of the text itself']:.4f}"
            lines.append(f"| {model} | {row['texts']} | " + " | ".join([*shown, both]) + " |")
    return "\n".join(lines)


def membership_table() -> str:
    """AUC of members against held-out pairs, before and after fine-tuning, by seed."""
    found = {model: each for model, each in _results().get("membership", {}).items() if each}
    if not found:
        return MISSING
    lines = [
        "| model | seeds | before | epochs | similarity alone | beside the model before |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model, seeds in found.items():
        for name in _rows(seeds[0]):
            shown = [
                " ".join(f"{each[name][way]:.3f}" for each in seeds)
                for way in ("model alone", "beside the model before")
            ]
            before = " ".join(f"{each['before']:.3f}" for each in seeds)
            row = (model, str(len(seeds)), before, name.split()[0], *shown)
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def extraction_table() -> str:
    """Copies of the victim and innocent models, and what the watermark test says of each."""
    seeds = _results().get("extraction", [])
    if not seeds:
        return MISSING
    lines = [
        "| model | cosine with the victim | similarities, Spearman | watermark: difference | p |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in _rows(seeds[0]):
        rows = [each[name] for each in seeds]
        shown = [
            " ".join(f"{row[key]:.3f}" for row in rows)
            for key in ("cosine with the victim", "similarities spearman", "difference")
        ]
        shown.append(" ".join(f"{row['p']:.1g}" for row in rows))
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    first = seeds[0]
    return "\n".join(
        [
            *lines,
            "",
            f"Seeds: {len(seeds)}; {first['texts']:,} texts, {first['texts with triggers']:,} of "
            "which have a trigger word; cosine of marked with unmarked vectors "
            f"{first['cosine of marked vectors']:.3f}.",
        ]
    )


def _rows(cell: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in cell.items() if isinstance(row, dict)}


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
