"""Tables of docs/compression.md, from recipes and from docs/results/soft-compression.json."""

import json
from pathlib import Path
from typing import Any

from polyvec.compress.soft.sections import COMPRESSOR
from polyvec.recipe import all_recipes
from polyvec.train.sections import STAGES

ROOT = Path(__file__).resolve().parents[1]


def results(name: str) -> dict[str, Any]:
    path = ROOT / "docs" / "results" / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def compressors_table() -> str:
    """Every soft compressor: what it keeps, who reads it, what its stages learn."""
    lines = [
        "| recipe | system | memory | carrier, connector | decoder | learns, stage by stage "
        "| differs from the paper |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    recipes = [each for each in all_recipes() if each[COMPRESSOR] is not None]
    for recipe in sorted(recipes, key=lambda each: (each.system.table is None, each.key)):
        found, system = recipe[COMPRESSOR], recipe.system
        assert found is not None
        settings = [f"{name} {value}" for name, value in found.memory_settings.items()]
        decoder = found.decoder if "/" not in found.decoder else f"`{found.decoder}`"
        stages = [
            " + ".join(stage.settings.get("objectives", {"ListMLE": 1})) for stage in recipe[STAGES]
        ]
        row = [
            f"[`{recipe.key}`](../{recipe.path.relative_to(ROOT)})",
            system.name + (f" [{system.reference}]" if system.table == 5 else ""),
            f"{found.memory}: {', '.join(settings)}" if settings else found.memory,
            found.carrier + (f", {found.connector}" if found.connector != "none" else ""),
            decoder + (f", {found.decoder_train}" if "/" in found.decoder else ""),
            ", then ".join(stages),
            system.differs,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


CONTROLS = ("memory", "shuffled", "closed book", "truncated", "full text")


def compressed_table(part: str = "rows") -> str:
    """What memories keep: reconstruction and answers, each beside its controls."""
    found = results("soft-compression")
    heads = ["rebuilt: memory", "shuffled", "none"]
    heads += [f"nats: {CONTROLS[0]}", *CONTROLS[1:]]
    heads += [f"{measure}: {name}" for measure in ("F1", "EM") for name in CONTROLS]
    lines = [
        "| recipe | tokens in | vectors out | rate | trained | minutes | "
        f"{' | '.join(heads)} | passes |",
        "| --- |" + " ---: |" * (len(heads) + 5) + " --- |",
    ]
    seeds: set[int] = set()
    for key, row in found.get(part, {}).items():
        scores = {name: value[0] for name, value in row["scores"].items()}
        if "em, memory" not in scores:
            continue
        rebuilt = [f"rebuilt, {name}" for name in ("memory", "shuffled", "closed book")]
        answers = [f"{measure}, {name}" for measure in ("f1", "em") for name in CONTROLS]
        seeds.add(row["scores"]["f1, memory"][2])
        cells = [
            *_sizes(key, row, scores),
            *(f"{100 * scores[name]:.1f}" for name in rebuilt),
            *(f"{scores[f'nats, {name}']:.2f}" for name in CONTROLS),
            *(_percent(row["scores"][name]) for name in answers),
            "yes" if _passes(row["scores"]) else "**no**",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if len(lines) == 2:
        return "Not measured."
    said = "one seed" if seeds == {1} else f"means of {' or '.join(map(str, sorted(seeds)))} seeds"
    return "\n".join([*lines, "", f"Of {'two facts' if part == 'facts' else 'SQuAD'}; {said}."])


def _percent(value: list[float]) -> str:
    """A mean over seeds, with their standard deviation if there are several."""
    mean, deviation, seeds = value
    return f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if seeds > 1 else "")


def _passes(scores: dict[str, list[float]]) -> bool:
    """Likelier answers than from a shuffled memory, and an F1 better by two standard errors."""
    mine, other = scores["f1, memory"], scores["f1, shuffled"]
    questions = scores["questions"][0] if "questions" in scores else 200
    # Of questions, the variance of a value from 0 to 1 being at most m(1 - m), and of seeds.
    variance = sum(
        mean * (1 - mean) / (questions * seeds) + deviation**2 / seeds
        for mean, deviation, seeds in (mine, other)
    )
    likelier = scores["nats, memory"][0] < scores["nats, shuffled"][0]
    return likelier and mine[0] - other[0] > 2 * variance**0.5


def facts_table() -> str:
    return compressed_table("facts")


def other_memories_table() -> str:
    """The rows that answer no question: PE-Rank orders passages, PC stands for a prompt."""
    lines = [
        "| recipe | tokens in | vectors out | rate | trained | minutes | measured |",
        "| --- |" + " ---: |" * 5 + " --- |",
    ]
    for key, row in results("soft-compression").get("rows", {}).items():
        scores = {name: value[0] for name, value in row["scores"].items()}
        if "em, memory" not in scores:
            skip = ("tokens in", "vectors out", "trained share")
            shown = [f"{name} {v:.3f}" for name, v in scores.items() if name not in skip]
            cells = [*_sizes(key, row, scores), "; ".join(shown)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else "Not measured."


def _sizes(key: str, row: dict[str, Any], scores: dict[str, float]) -> list[str]:
    return [
        f"`{key}`, {row['scale']}" if "scale" in row else f"`{key}`",
        f"{scores['tokens in']:.0f}",
        f"{scores['vectors out']:.0f}",
        f"{scores['tokens in'] / scores['vectors out']:.1f}",
        f"{100 * scores['trained share']:.1f} %",
        f"{row['minutes']:.1f}",
    ]


def memory_orderings_table() -> str:
    """The papers' orderings on nano-lm, over seeds."""
    claims = results("soft-compression").get("claims", [])
    lines = ["| claim | arm | over | difference | seeds |", "| --- | --- | --- | ---: | ---: |"]
    for claim in claims:
        value, error = claim["by"]
        word = "not shown"
        if claim["seeds"] < 2:
            word = "one seed, no error known"
        elif abs(value) > 2 * error:
            word = "**shown**" if value > 0 else "**reversed**"
        lines.append(
            f"| {claim['says']}: {word} | {claim['row']} | {claim['over']} "
            f"| {value:+.3f} ± {error:.3f} | {claim['seeds']} |"
        )
    return "\n".join(lines) if claims else "Not measured."


def toys_table() -> str:
    """Each arm of the orderings: mean and standard deviation of its measures."""
    toys = results("soft-compression").get("toys", {})
    lines = ["| arm | seeds | measured |", "| --- | ---: | --- |"]
    for name, toy in toys.items():
        seeds = max(value[2] for value in toy["scores"].values())
        shown = [f"{c} {v[0]:.3f} ± {v[1]:.3f}" for c, v in toy["scores"].items()]
        lines.append(f"| {name} | {seeds} | {', '.join(shown)} |")
    return "\n".join(lines) if toys else "Not measured."
