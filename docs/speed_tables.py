"""Tables of docs/speed.md, from docs/results/encode-cpu.json."""

import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "encode-cpu.json"
MODELS = {
    "minilm": "all-MiniLM-L6-v2",
    "nano-lm": "nano-lm (decoder, 3.9M)",
    "smollm2": "SmolLM2-135M (decoder)",
}
LIBRARIES = {
    "polyvec-fast": "polyvec, dtype=fast",
    "polyvec-onnx": "polyvec, backend=onnx",
    "onnx": "sentence-transformers, ONNX Runtime",
    "onnx-int8": "sentence-transformers, ONNX Runtime, dynamic int8",
    "openvino": "sentence-transformers, OpenVINO",
    "openvino-int8": "OpenVINO, static int8 (NNCF)",
    "openvino-bfloat16": "sentence-transformers, OpenVINO, bfloat16",
    "infinity": "infinity-emb",
}
MISSING = "Not measured."


def batches_table() -> str:
    """Mixed texts in float32: CPU-seconds of every library, how many times as fast polyvec is."""
    lines = [
        "| model | library | batch | texts a CPU-second | polyvec is faster by "
        "| by wall time | of the matrix-product rate |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for task, found in _results():
        ours = found["batches"][0]
        for row in found["batches"]:
            if row["library"] in found.get("cosines", {}):
                continue
            faster = ["", ""] if row is ours else _faster(row, ours)
            size = row["batch_size"] or "by tokens"
            lines.append(
                f"| {_name(task)} | {_library(row['library'])} | {size} "
                f"| {row['texts_per_cpu_s']:.1f} | {' | '.join(faster)} "
                f"| {100 * row['of_matmul_rate']:.0f} % |"
            )
    return "\n".join([*lines, "", *_conditions()]) if len(lines) > 2 else MISSING


def _faster(row: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """How many times as long the row's took: the median over rounds, as machines drift between."""
    found = []
    for unit in ("cpu_s", "wall_s"):
        pairs = zip(row.get("runs", [row]), ours.get("runs", [ours]), strict=True)
        found.append(f"{statistics.median(a[unit] / b[unit] for a, b in pairs):.2f}")
    return found


def fast_table() -> str:
    """Mixed texts with dtype="fast", beside every library."""
    lines = [
        "| model | library | batch | texts a CPU-second | polyvec fast is faster by "
        "| by wall time | mean cosine with float32 |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for task, found in _results():
        rows = {row["library"]: row for row in found["batches"]}
        ours = rows.get("polyvec-fast")
        if ours is None:
            continue
        for row in [ours, *(row for row in found["batches"] if row is not ours)]:
            faster = ["", ""] if row is ours else _faster(row, ours)
            cosine = found["cosines"].get(row["library"])
            lines.append(
                f"| {_name(task)} | {_library(row['library'])} "
                f"| {row['batch_size'] or 'by tokens'} | {row['texts_per_cpu_s']:.1f} "
                f"| {' | '.join(faster)} | {f'{cosine:.4f}' if cosine else ''} |"
            )
    return "\n".join(lines) if len(lines) > 2 else MISSING


def queries_table() -> str:
    """One short query at a time: milliseconds of CPU and of wall time."""
    lines = [
        "| model | library | CPU p50 | CPU p99 | wall p50 | wall p99 "
        "| polyvec is faster by (CPU p50, p99) | with backend=onnx |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    names = ("cpu_p50_ms", "cpu_p99_ms", "wall_p50_ms", "wall_p99_ms")
    for task, found in _results():
        for library, row in found["single"].items():
            ours = "polyvec-fast" if library in found.get("cosines", {}) else "polyvec"
            cells = " | ".join(f"{row[name]:.1f} ms" for name in names)
            faster = []
            for each in (ours, f"{ours}-onnx"):
                beside = found["single"].get(each)
                shown = beside and not library.startswith(each)
                ratios = [f"{row[name] / beside[name]:.2f}" for name in names[:2] if shown]
                faster.append(", ".join(ratios))
            lines.append(
                f"| {_name(task)} | {_library(library)} | {cells} | {' | '.join(faster)} |"
            )
    return "\n".join(lines) if len(lines) > 2 else MISSING


def start_table() -> str:
    """CPU-seconds of one process that embeds one text, and of the imports alone."""
    found = {key: value for key, value in _all().items() if key.startswith("start-")}
    if not found:
        return MISSING
    runs = list(found.values())
    makers = " | ".join(f"CPU-seconds, {key.rpartition('-')[2]}" for key in found)
    lines = [f"| process | {makers} |", f"| --- |{' ---: |' * len(runs)}"]
    for name in runs[0]["cpu_s"]:
        cells = " | ".join(f"{each['cpu_s'][name]:.2f}" for each in runs)
        lines.append(f"| {name} | {cells} |")
    for each in runs:
        spent = each["cpu_s"]
        share = spent["polyvec"] / spent["sentence-transformers"]
        lines += [
            "",
            f"polyvec costs {share:.2f} of sentence-transformers; {each['processor']}, "
            f"medians of {each['rounds']} runs.",
        ]
    return "\n".join(lines)


def _all() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    return found


def _results() -> list[tuple[str, dict[str, Any]]]:
    return [(key, value) for key, value in _all().items() if "batches" in value]


def _name(key: str) -> str:
    task, threads, maker = key.rsplit("-", 2)
    return f"{MODELS[task]}, {threads} thread{'s' if threads != '1' else ''}, {maker}"


def _library(name: str) -> str:
    return LIBRARIES.get(name, name)


def _conditions() -> list[str]:
    """What was measured, a line for each model."""
    return [
        f"{_name(key)}: {found['texts']:,} texts, {found['tokens']:,} tokens, "
        f"{found['rounds']} round{'s' if found['rounds'] > 1 else ''}; vectors differ by at most "
        f"{max(found['differences'].values()):.0e} of the largest number; matrix products: "
        f"{found['matmul_gflop_per_cpu_s']:.0f} GFLOP a CPU-second; {found['processor']}.  "
        for key, found in _results()
    ]
