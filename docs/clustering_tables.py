"""Tables of docs/clustering.md, from recipes and docs/results/clustering.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyvec.cluster.sections import CLUSTERING
from polyvec.recipe import all_recipes

RESULTS = Path(__file__).resolve().parent / "results" / "clustering.json"
NAMES = {
    "clinc150": "CLINC150",
    "banking77": "Banking77",
    "stackoverflow": "StackOverflow",
    "newsgroups20": "20 Newsgroups",
}
VECTORS = {"lsa": "LSA of 256 dimensions", "minilm": "all-MiniLM-L6-v2"}


def _results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    return found


def recipes_table() -> str:
    """The recipes with a section [clustering]."""
    lines = [
        "| recipe | system | groups | feedback | differs from the paper |",
        "| --- | --- | --- | --- | --- |",
    ]
    recipes = [each for each in all_recipes() if each[CLUSTERING] is not None]
    for recipe in sorted(recipes, key=lambda each: each.system.reference or 0):
        found, system = recipe[CLUSTERING], recipe.system
        assert found is not None
        method = found.method if isinstance(found.method, str) else found.method["kind"]
        k = f", k by {found.choose_by}" if found.k == "auto" else ""
        asked = ", then ".join(_feedback(each) for each in found.feedback)
        lines.append(
            f"| [`{recipe.key}`](../recipes/clustering/{recipe.key}.toml) "
            f"| {system.name} [{system.reference}] | {method}{k} | {asked} | {system.differs} |"
        )
    return "\n".join(lines)


def _feedback(table: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in table.items() if key not in ("kind", "stage", "prompt")}
    settings = ", ".join(f"{key} {value}" for key, value in shown.items())
    return f"{table['kind']} ({settings})" if settings else str(table["kind"])


def oracle_tables() -> str:
    """Accuracy by method and by the share of lies, a table for each set and kind of vectors."""
    parts = []
    for how, sets in _results().get("oracle", {}).items():
        for name, found in sets.items():
            rates = sorted({rate for each in found.values() for rate in each}, key=float)
            head = f"| {NAMES[name]}, {VECTORS[how]} | calls |"
            lines = [
                head + "".join(f" {100 * float(rate):.0f} % lies |" for rate in rates),
                "| --- | ---: |" + " ---: |" * len(rates),
            ]
            for method, by in found.items():
                calls = next(iter(by.values()))["calls"]
                cells = [_spread(by[rate]["accuracy"]) if rate in by else "" for rate in rates]
                lines.append(f"| {method} | {calls:,} | {' | '.join(cells)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts) or "Not measured."


def model_table() -> str:
    """What SmolLM2 gains and loses beside k-means on the same vectors."""
    lines = [
        "| set | method | calls | right answers | accuracy | NMI | ARI |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in _results().get("model", {}).items():
        for method, each in found.items():
            right = "" if each["right"] is None else f"{100 * each['right']:.0f} %"
            scores = " | ".join(_spread(each[column]) for column in ("accuracy", "nmi", "ari"))
            lines.append(f"| {NAMES[name]} | {method} | {each['calls']:,} | {right} | {scores} |")
    return "\n".join(lines) if len(lines) > 2 else "Not measured."


def k_table() -> str:
    """How many groups each way finds, beside the gold number."""
    sizes = [
        (name, found)
        for name, by_size in _results().get("k", {}).items()
        for found in by_size.values()
    ]
    ways = list(dict.fromkeys(way for _, found in sizes for way in found))
    if not ways:
        return "Not measured."
    calls = [max(found[way]["calls"] for _, found in sizes if way in found) for way in ways]
    heads = [f"{way} ({num:,} calls)" if num else way for way, num in zip(ways, calls, strict=True)]
    lines = [
        f"| set | texts | gold | {' | '.join(heads)} |",
        "| --- | ---: | ---: |" + " ---: |" * len(ways),
    ]
    for name, found in sizes:
        first = next(iter(found.values()))
        ks = [str(found[way]["k"]) if way in found else "" for way in ways]
        lines.append(f"| {NAMES[name]} | {first['texts']:,} | {first['gold']} | {' | '.join(ks)} |")
    return "\n".join(lines)


def size_line() -> str:
    found = _results().get("size")
    if found is None:
        return "Not measured."
    return (
        f"{found['vectors']:,} vectors of 384 dimensions in {found['groups']} groups: "
        f"{found['s']:.0f} s ({found['cpu_s']:.0f} s of CPU time) on one thread, and "
        f"{found['mb']:,} MB in all, the vectors and what made them included."
    )


def _spread(value: list[float]) -> str:
    mean, deviation, num = value
    return f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if num > 1 else "")
