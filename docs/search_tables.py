"""Tables of docs/search.md, from docs/results/index-kinds.json."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "index-kinds.json"
QUALITY = RESULTS.with_name("search-quality.json")
SHOWN = {"scifact": "SciFact", "nfcorpus": "NFCorpus", "cranfield": "Cranfield", "cisi": "CISI"}
SETS = {
    "synthetic": "Synthetic vectors, {} x {}, {} queries of the same mixture",
    "real": "Texts of SciFact, NFCorpus, Cranfield and 20 Newsgroups by all-MiniLM-L6-v2, at most "
    "256 tokens, {} x {}, {} queries of the first three",
}


def kinds_table() -> str:
    """A table for each set, a line for each setting of each kind, and what else was measured."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    parts = []
    for name, title in SETS.items():
        if name in found:
            shape = [
                f"{number:,}" for number in (*found[name]["shape"], found[name]["num_queries"])
            ]
            parts.append(f"{title.format(*shape)} ({found[name]['cpu']}):\n\n{_table(found[name])}")
    if "million" in found:
        row = found["million"]
        parts.append(
            f"A million synthetic vectors, {row['shape'][1]} numbers each, by the engine: built "
            f"in {row['build_s']:.0f} s, {row['disk_mb']:,.0f} MB on disk, at most "
            f"{row['peak_gib']:.1f} GiB of memory; recall@10 {row['recall']:.3f}, p50 "
            f"{row['p50_ms']:.0f} ms, p95 {row['p95_ms']:.0f} ms."
        )
    if "appends" in found:
        row = found["appends"]
        parts.append(
            "500 writes of one row to an index of 25,000, in CPU time of a query: "
            f"{row['before_ms']:.1f} ms before, at most {row['worst_ms']:.1f} ms between (median "
            f"of 20 queries after every tenth write), {row['after_ms']:.1f} ms after; a write "
            f"{row['write_p50_ms']:.0f} ms of wall time (p50), with a compaction "
            f"{row['write_p99_ms']:.0f} ms (p99)."
        )
    return "\n\n".join(parts)


def quality_table() -> str:
    """nDCG@10, times 100, a line for each method; the mean where all sets were measured."""
    found = json.loads(QUALITY.read_text("utf-8"))
    by_method: dict[str, dict[str, Any]] = {}
    for cell in found["cells"]:
        by_method.setdefault(cell["method"], {})[cell["set"]] = cell
    lines = [
        f"| method | {' | '.join(SHOWN.values())} | mean of the four |",
        f"| --- |{' ---: |' * (len(SHOWN) + 1)}",
    ]
    for method, cells in by_method.items():
        scores = [100 * cells[name]["ndcg@10"] for name in SHOWN if name in cells]
        shown = [f"{100 * cells[n]['ndcg@10']:.2f}" if n in cells else "not yet" for n in SHOWN]
        mean = f"{sum(scores) / len(scores):.2f}" if len(scores) == len(SHOWN) else "not yet"
        lines.append(f"| {method} | {' | '.join(shown)} | {mean} |")
    return "\n".join(lines)


def _table(measured: dict[str, Any]) -> str:
    lines = [
        "| kind | setting | recall@10 | p50 ms | p95 ms | build s | CPU s | disk MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, rows in measured["kinds"].items():
        for row in rows:
            cells = [
                kind,
                row["setting"],
                f"{row['recall']:.4f}",
                f"{row['p50_ms']:.1f}",
                f"{row['p95_ms']:.1f}",
                f"{row['build_s']:.0f}",
                f"{row['build_cpu_s']:.0f}",
                f"{row['disk_mb']:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
