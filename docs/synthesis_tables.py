"""Tables of docs/synthesis_effects.md, from docs/results/synthesis-*.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = {
    "stsb test": "STS-B",
    "sick test": "SICK-R",
    "sts16 test": "STS16",
    "scifact": "SciFact",
    "nl2bash": "NL2Bash",
    "cosqa": "CosQA",
    "medquad": "MedQuAD",
    "squad": "SQuAD dev",
    "clinc150": "CLINC150",
}
ARMS = ("base", "unfiltered", "filtered", "gold")
CHANCE = "chance"  # of a measure, no gain of training


def _results(name: str) -> dict[str, Any]:
    path = RESULTS / f"synthesis-{name}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def recipes_table(scale: str) -> str:
    """Table 3 at a scale: rows, calls, minutes, and scores of the four arms."""
    found = _results(f"table-{scale}")
    if not found.get("experiments"):
        return "Not measured."
    lines = [
        "| row of Table 3 | written | kept | calls | minutes | measured | base | unfiltered "
        "| filtered | gold | filters gain |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for key, each in found["experiments"].items():
        columns = [c for c in next(iter(each["arms"].values())) if c != CHANCE]
        cells = [f"[`{key}`](../recipes/{_folder(key)}/{key}.toml)", *_made(found, key)]
        cells.append("<br>".join(COLUMNS.get(c, c) for c in columns))
        for arm in ARMS:
            scores = each["arms"].get(arm, {})
            cells.append("<br>".join(_spread(scores.get(column)) for column in columns))
        cells.append(_filters_gain(each))
        lines.append("| " + " | ".join(cells) + " |")
    failed = [
        f"- `{key}`, {arm}: {reason}"
        for key, each in found["experiments"].items()
        for arm, reason in each["failed"].items()
    ]
    return "\n".join([*lines, *(["", "Not measured:", "", *failed] if failed else [])])


def _filters_gain(experiment: Mapping[str, Any]) -> str:
    """Of the filtered rows over as many unfiltered ones, where more than one seed tells."""
    seeds = [
        max((num for _, _, num in experiment["arms"].get(arm, {}).values()), default=0)
        for arm in ("filtered", "unfiltered")
    ]
    for claim in experiment["claims"]:
        if (claim["row"], claim["over"]) == ("filtered", "unfiltered") and min(seeds) > 1:
            return _verdict(claim["by"])
    return ""


def _folder(key: str) -> str:
    recipes = Path(__file__).resolve().parents[1] / "recipes"
    return next(recipes.rglob(f"{key}.toml")).parent.name


def _made(found: Mapping[str, Any], key: str) -> list[str]:
    source = found["sources"].get(f"table {key}")
    if source is None or "error" in source:
        return ["", "", "", ""]
    rows = source["rows"]
    made = rows.get("unfiltered", rows["filtered"])
    minutes = source["s"] / 60
    return [str(made), str(rows["filtered"]), f"{source['calls']:,}", f"{minutes:.1f}"]


def claims_table() -> str:
    """Each claim: shown, not shown or reversed."""
    lines = ["| experiment | claim | measured |", "| --- | --- | --- |"]
    for each in _results("effects").get("experiments", {}).values():
        for claim in each["claims"]:
            says = f"{claim['says']} (*{claim['row']}* over *{claim['over']}*)"
            lines.append(f"| {each['paper']} | {says} | {_verdict(claim['by'])} |")
    return "\n".join(lines) if len(lines) > 2 else "Not measured."


def _verdict(by: Mapping[str, list[float]]) -> str:
    """By columns whose difference is beyond two standard errors, and beyond half a point."""
    by = {column: value for column, value in by.items() if column != CHANCE}
    if not by:
        return "not measured"
    beyond = [value for value, error in by.values() if abs(value) > max(2 * error, 0.005)]
    word = "not shown"
    if 2 * sum(value > 0 for value in beyond) > len(by):
        word = "**shown**"
    elif 2 * sum(value < 0 for value in beyond) > len(by):
        word = "**reversed**"
    return f"{word}: " + ", ".join(
        f"{COLUMNS.get(column, column)} {100 * value:+.1f}"
        + (f" ± {100 * error:.1f}" if error else "")
        for column, (value, error) in by.items()
    )


def arms_tables() -> str:
    """Mean and standard deviation over seeds of each arm of each experiment."""
    parts = []
    for found in _results("effects").get("experiments", {}).values():
        columns = list(dict.fromkeys(c for arm in found["arms"].values() for c in arm))
        heads = [COLUMNS.get(column, column) for column in columns]
        lines = [
            f"| {found['paper']} | rows | seeds | {' | '.join(heads)} |",
            "| --- |" + " ---: |" * (len(columns) + 2),
        ]
        for arm, scores in found["arms"].items():
            rows = [str(n) for n in found["rows"].get(arm, []) if n is not None]
            seeds = max(num for _, _, num in scores.values())
            cells = [_spread(scores.get(column)) for column in columns]
            lines.append(f"| {arm} | {', '.join(rows)} | {seeds} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "Not measured."


def sources_table() -> str:
    """What was written for the claims: rows by file, calls, minutes."""
    lines = [
        "| source | rows, by file | calls | minutes |",
        "| --- | --- | ---: | ---: |",
    ]
    for name, each in _results("effects").get("sources", {}).items():
        if "error" in each:
            lines.append(f"| {name} | failed: {each['error'].splitlines()[-1]} | | |")
            continue
        rows = ", ".join(f"{file} {num}" for file, num in each["rows"].items())
        minutes = each.get("s", each["wall_s"]) / 60
        lines.append(f"| {name} | {rows} | {each.get('calls', 0):,} | {minutes:.1f} |")
    return "\n".join(lines) if len(lines) > 2 else "Not measured."


def false_negatives_table() -> str:
    """CLINC150's negatives by rule: how many are of the query's intent, and how many are left."""
    found = _results("effects").get("sources", {}).get("mined", {})
    if "false negatives" not in found:
        return "Not measured."
    lines = ["| negatives | false ones | a row |", "| --- | ---: | ---: |"]
    for name, rate in found["false negatives"].items():
        lines.append(f"| {name} | {100 * rate:.1f} % | {found['negatives'][name]:.2f} |")
    return "\n".join(lines)


def _spread(value: list[float] | None) -> str:
    if value is None:
        return ""
    mean, deviation, seeds = value
    return f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if seeds > 1 else "")
