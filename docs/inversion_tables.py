"""Tables of docs/inversion.md, for generate.py."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "inversion.json"
MEASURES = ("bleu", "rouge_l", "token_f1", "exact_match", "cosine")
HEAD = "BLEU | ROUGE-L | token F1 | exact match | cosine |"
MISSING = "Not measured."


def attacks_table() -> str:
    """Every attack that writes texts, beside what needs no attack."""
    found = _results()
    if not found:
        return MISSING
    lines = [f"| attack | {HEAD} minutes |", "| --- |" + " ---: |" * 6]
    for name, row in found.get("inverter", {}).get("baselines", {}).items():
        lines.append(_line(f"no attack: {name}", row))
    for prefix, cell in found.get("inverter", {}).items():
        lines += [_line(f"{prefix}, {way}", row, cell["minutes"]) for way, row in _ways(cell)
                  if prefix != "baselines"]  # fmt: skip
    cells = {"corrector": found.get("corrector", {})}
    cells |= found.get("transfer", {})
    if personas := found.get("personas"):
        cells[f"prefix 1, {personas['known']} personas known"] = personas
    for label, cell in cells.items():
        lines += [_line(f"{label}: {way}", row, cell["minutes"]) for way, row in _ways(cell)]
    if search := found.get("search"):
        lines.append(_line(f"search, {search['texts']} texts", search, search["minutes"]))
    facts = found["facts"]
    return "\n".join(
        [
            *lines,
            "",
            f"{facts['attacked']} attacked captions, {facts['known']:,} known ones, "
            f"{facts['steps']} steps of 32 texts (the corrector's stages half as many).",
        ]
    )


def defences_table() -> str:
    """Each defence: what attackers find, and what it leaves of similarity and retrieval."""
    cells = _results().get("defence", {})
    if not cells:
        return MISSING
    knows = ("fixed", "adaptive", "leaked 1000", "retrained")
    measures = list(next(iter(cells.values()))["utility"])
    head = " | ".join([*(f"{each}: BLEU, token F1, words" for each in knows), *measures])
    lines = [f"| defence | {head} |", "| --- |" + " ---: |" * (len(knows) + len(measures))]
    for name, cell in cells.items():
        shown = [_found(cell["by"].get(each)) for each in knows]
        shown += [f"{100 * cell['utility'][each]:.2f}" for each in measures]
        lines.append(f"| `{name}` | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _found(row: dict[str, Any] | None) -> str:
    """BLEU, token F1 and F1 of words, as far as they were measured."""
    measures = ("bleu", "token_f1", "words")
    return (
        ", ".join(_percent(row[each]) if each in row else "-" for each in measures) if row else ""
    )


def multilingual_table() -> str:
    """Captions in languages that the victim was not trained for."""
    cell = _results().get("multilingual")
    if not cell:
        return MISSING
    lines = [f"| language | {HEAD} minutes |", "| --- |" + " ---: |" * 6]
    lines += [_line(name, row, cell["minutes"]) for name, row in _ways(cell)]
    return "\n".join(lines)


def spaces_table() -> str:
    """What leaked pairs, or none, give who has an inverter of another space."""
    cells = _results().get("space", {})
    if not cells:
        return MISSING
    lines = [
        "| from | map, pairs | cosine with the true vector | own text is the nearest "
        "| BLEU | token F1 |",
        "| --- | --- |" + " ---: |" * 4,
    ]
    for space, cell in cells.items():
        for name, row in cell.items():
            shown = [f"{row['near']:.3f}", *(_percent(row[k]) for k in ("own first", "bleu"))]
            lines.append(
                f"| {space} | {name} | " + " | ".join([*shown, _percent(row["token_f1"])]) + " |"
            )
    return "\n".join(lines)


def personal_table() -> str:
    """Share of personal data found whole, and of its words, by kind."""
    cell = _results().get("personal")
    if not cell:
        return MISSING
    ways = [name for name, row in cell.items() if isinstance(row, dict)]
    lines = [
        "| kind | count | " + " | ".join(f"{way}: whole, words" for way in ways) + " |",
        "| --- | ---: |" + " ---: |" * len(ways),
    ]
    for kind, (count, _, _) in cell[ways[0]]["recall"].items():
        shown = [
            f"{_percent(cell[way]['recall'][kind][1])}, {_percent(cell[way]['recall'][kind][2])}"
            for way in ways
        ]
        lines.append(f"| {kind} | {count} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def walks_table() -> str:
    """How the texts on the way from a query to its document rank the document."""
    cell = _results().get("walks")
    if not cell:
        return MISSING
    lines = [
        "| what is asked | mean reciprocal rank | document first | mean rank |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in _ways(cell):
        shown = [_percent(row["mrr"]), _percent(row["first"]), f"{row['mean rank']:.1f}"]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    better = _percent(cell["queries that a text on the way improves"])
    falls = "falls" if cell["mean rank falls at each step"] else "does not fall"
    said = f"The mean rank {falls} at each step of the way. Of other queries a text on the way "
    return "\n".join([*lines, "", f"{said}ranks the document higher for {better} %."])


def revealer_table() -> str:
    """What a classifier says of texts that are led by what it says."""
    cell = _results().get("revealer")
    if not cell:
        return MISSING
    lines = [
        "| text | probability of the class | cosine with its nearest private text |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {row['probability']:.3f} | {row['near']:.3f} |" for name, row in _ways(cell)
    ]
    lines += ["", "| class | text at the start | at the end | nearest private text |"]
    lines += ["| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(row) + " |" for row in cell["examples"]]
    return "\n".join(lines)


def audits_table() -> str:
    """Of each audit, the strongest attacker of each defence, the best inverter, and utility."""
    audits = [json.loads(path.read_text()) for path in sorted(RESULTS.parent.glob("audit-*.json"))]
    if not audits:
        return MISSING
    measures = list(dict.fromkeys(
        name for audit in audits for scores in audit["utility"].values() for name in scores
    ))  # fmt: skip
    head = " | ".join(["F1 of content words", "token F1 of the best inverter", *measures])
    lines = [
        f"| model | defence | strongest attacker | {head} |",
        "| --- | --- | --- |" + " ---: |" * (2 + len(measures)),
    ]
    for audit in audits:
        start = [row for row in audit["rows"] if row["knows"] == "nothing"]
        shown = [_percent(max(row["words"] for row in start)), _token_f1(start)]
        shown += [""] * len(measures)
        lines.append(f"| {audit['model']} | no attack | | " + " | ".join(shown) + " |")
        for name, scores in audit["utility"].items():
            rows = [
                row for row in audit["rows"] if row["defence"] == name and row["knows"] != "nothing"
            ]
            best = max(rows, key=lambda row: row["words"])
            shown = [_percent(best["words"]), _token_f1(rows, "inverter")]
            shown += [_percent(scores[each]) if each in scores else "" for each in measures]
            lines.append(
                f"| {audit['model']} | `{name}` | {best['attack']}, {best['knows']} | "
                + " | ".join(shown) + " |"
            )  # fmt: skip
    return "\n".join(lines)


def _token_f1(rows: list[dict[str, Any]], attack: str | None = None) -> str:
    """The largest of the rows of an attack, or of all."""
    found = [row["leakage"]["token_f1"] for row in rows
             if row["leakage"] and attack in (None, row["attack"])]  # fmt: skip
    return _percent(max(found)) if found else ""


def _ways(cell: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, row) for name, row in cell.items() if isinstance(row, dict)]


def _line(name: str, row: dict[str, Any], minutes: float | None = None) -> str:
    cells = [_percent(row[each]) for each in MEASURES[:4]] + [f"{row['cosine']:.3f}"]
    return f"| {name} | " + " | ".join([*cells, "" if minutes is None else f"{minutes:.1f}"]) + " |"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
