"""Tables of docs/scale.md, from docs/results/bulk-million.json and the figures of the package."""

import json
from pathlib import Path

from polyvec.bulk.cost import Wanted, cost
from polyvec.bulk.figures import figures

RESULTS = Path(__file__).resolve().parent / "results" / "bulk-million.json"
PREDICTED = {
    "bulk_s": ("`polyvec embed` into a folder", "CPU s", 1.0),
    "bulk_bytes": ("its shards", "MB", 1e6),
    "folder_build_s": ("an index in a folder, built", "CPU s", 1.0),
    "folder_bytes": ("its files", "MB", 1e6),
}


def million_table() -> str:
    """A million rows: uninterrupted, killed and on Ray, and the peaks of memory."""
    found = json.loads(RESULTS.read_text("utf-8"))
    whole = found["whole"]
    lines = [
        "| a million rows | seconds | what came out |",
        "| --- | ---: | --- |",
        f"| one process, uninterrupted | {whole['seconds']:,.0f} ({whole['cpu_s']:,.0f} of CPU) | "
        f"{whole['rows']:,} rows, {whole['distinct_ids']:,} ids, "
        f"{whole['rows_per_cpu_s']:,.0f} rows a CPU second |",
    ]
    for name, what in (
        ("killed", "two processes, ten times one of them killed"),
        ("ray", "Ray, two nodes, one worker killed"),
    ):
        if name in found:
            lines.append(
                f"| {what} | {found[name]['seconds']:,.0f} | rows, ids and checksums of all "
                f"{found[name]['shards_equal']} shards equal |"
            )
    lines += [
        "",
        "| peak of memory in MB | 10,000 texts | 1,000,000 texts | more |",
        "| --- | ---: | ---: | ---: |",
    ]
    peaks = {name: each for name, each in found.get("memory", {}).items() if isinstance(each, dict)}
    sizes = {rows: found["sizes"][rows]["peak_mb"] for rows in ("10000", "1000000")}
    for name, each in {**peaks, "a folder of shards": sizes}.items():
        few, many = each["10000"], each["1000000"]
        lines.append(f"| to {name} | {few:,.0f} | {many:,.0f} | {many - few:+,.0f} |")
    return "\n".join(lines)


def predicted_table() -> str:
    """The run of a million rows, predicted from those of 100,000 and fewer."""
    lines = [
        "| | unit | predicted | measured | difference |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, (what, unit, scale) in PREDICTED.items():
        curve = figures().curves[name]
        predicted, measured = curve.at(1e6, below=1e6).value, dict(curve.points)[1e6]
        lines.append(
            f"| {what} | {unit} | {predicted / scale:,.0f} | {measured / scale:,.0f} | "
            f"{100 * (predicted / measured - 1):+.0f} % |"
        )
    return "\n".join(lines)


def plan_table() -> str:
    """`polyvec plan` for a billion documents."""
    lines = ["| what | number | basis | from |", "| --- | ---: | --- | --- |"]
    for each in cost(Wanted(documents=10**9, tokens=200, gpus=64, precision="int8")):
        lines.append(f"| {each.name} | {each.shown} | {each.basis} | {each.source} |")
    return "\n".join(lines)


def figures_table() -> str:
    """The rates that were measured."""
    lines = [
        "| model | dimensions | tokens read | tokens/s of a core | of a GPU |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for each in figures().models.values():
        rates = [
            f"{each.tokens_per_s[device].value:,.0f}" if device in each.tokens_per_s else ""
            for device in ("core", "gpu")
        ]
        lines.append(
            f"| {each.name} | {each.dimension:,} | {each.max_tokens:,} | {' | '.join(rates)} |"
        )
    return "\n".join(lines)
