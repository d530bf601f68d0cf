"""Quality and speed of a language model cut at every depth, without training.

    python benchmarks/layer_probe.py --data DATA --scale small       (about 15 minutes, two cores)

For each depth: Spearman on every third pair of STS-B dev (mean, weighted mean, last token and
PromptEOL), L3Prune's criterion (contrastive loss of L3Prune's recipe on SNLI dev's triplets:
premise, entailed and contradicting hypothesis; Thennal et al. 2024, arXiv:2410.14578), and texts
per CPU second beside the whole model's, alternating runs. Results go to
docs/results/layer-probe-SCALE.json and .svg.
"""

import argparse
import dataclasses
import gzip
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyvec.data.tasks.folder import read_folder
from polyvec.embed.compose import compose
from polyvec.embed.layer_probe import depth_vectors, probe_layers
from polyvec.embed.sections import EMBEDDER
from polyvec.evaluate.significance import spearman
from polyvec.recipe import load_recipe
from polyvec.storage.files import atomic_file

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
CURVES = {
    "mean": ("causal-mean", {}),
    "weighted mean": ("causal-mean", {"pooling": "weighted_mean"}),
    "last token": ("causal-last", {}),
    "PromptEOL": ("prompteol", {}),
}
TRIPLETS, BATCH = 512, 64
RUNS = 3


def build(recipe: str, scale: str, dtype: torch.dtype, **changes: Any) -> Any:
    settings = dataclasses.replace(load_recipe(recipe).at(EMBEDDER, scale), **changes)
    return compose(settings).to(dtype=dtype)


def quality(embedder: Any, data: Any) -> list[float]:
    a_NLD, b_NLD = (
        depth_vectors(embedder, side, show_progress_bar=False)
        for side in (data.sentences1, data.sentences2)
    )
    norms_NL = np.linalg.norm(a_NLD, axis=2) * np.linalg.norm(b_NLD, axis=2)
    cosines_NL = (a_NLD * b_NLD).sum(axis=2) / norms_NL
    return [spearman(np.column_stack([column, data.scores])) for column in cosines_NL.T]


def losses(scale: str, dtype: torch.dtype, folder: Path) -> Any:
    with gzip.open(folder / "snli_devtest" / "triplets_dev.jsonl.gz", "rt") as file:
        rows = [json.loads(next(file)) for _ in range(TRIPLETS)]
    sides = [[row[key] for row in rows] for key in ("anchor", "positive", "negative")]
    embedder = build("l3prune", scale, dtype, num_layers=None, pooling="weighted_mean")
    return probe_layers(embedder, *sides, batch_size=BATCH)


def speeds(scale: str, dtype: torch.dtype, texts: list[str], depths: list[int]) -> list[float]:
    """Texts per CPU second at each depth over those of the whole model: medians, alternating."""
    models = {depth: build("causal-mean", scale, dtype, num_layers=depth) for depth in depths}
    seconds: dict[int, list[float]] = {depth: [] for depth in depths}
    for _ in range(RUNS):
        for depth, model in models.items():
            began = time.process_time()
            model.encode(texts, show_progress_bar=False)
            seconds[depth].append(time.process_time() - began)
    whole = statistics.median(seconds[max(depths)])
    return [whole / statistics.median(seconds[depth]) for depth in depths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scale", choices=("small", "nano"), default="small")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    whole: Any = read_folder(options.data / "stsb", "dev")
    data = dataclasses.replace(
        whole,
        sentences1=whole.sentences1[::3],
        sentences2=whole.sentences2[::3],
        scores=whole.scores[::3],
    )
    found: dict[str, Any] = {"scale": options.scale, "dtype": options.dtype, "curves": {}}
    for name, (recipe, changes) in CURVES.items():
        curve = quality(build(recipe, options.scale, dtype, **changes), data)
        found["curves"][name] = [round(value, 4) for value in curve]
        best = int(np.argmax(curve))
        print(f"{name:14} best {100 * curve[best]:.2f} at {best + 1}, all {100 * curve[-1]:.2f}")
    probe = losses(options.scale, dtype, options.data)
    found["losses"] = [round(value, 4) for value in probe.losses]
    found["l3prune"] = {"small": probe.small, "large": probe.large}
    print("L3Prune's losses:", " ".join(f"{value:.3f}" for value in probe.losses))
    print(f"L3Prune's choices: {probe.small} (small), {probe.large} (large)")
    num_layers = len(probe.losses)
    depths = sorted({*range(num_layers, 0, -max(1, num_layers // 6)), probe.small, probe.large})
    ratios = speeds(options.scale, dtype, list(data.sentences1[:100]), depths)
    found["speed"] = {str(d): round(r, 2) for d, r in zip(depths, ratios, strict=True)}
    print("times as fast:", found["speed"])
    with atomic_file(RESULTS / f"layer-probe-{options.scale}.json", "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")
    with atomic_file(RESULTS / f"layer-probe-{options.scale}.svg", "w") as file:
        file.write(drawn(found))


COLOURS = ("#0b6e99", "#7aa6b8", "#b06a00", "#a0224c", "#444444")
WIDTH, HEIGHT, LEFT, TOP = 640, 300, 60, 30


def drawn(found: dict[str, Any]) -> str:
    """Two panels over depth: Spearman with the speed below it, and L3Prune's loss."""
    num = len(found["losses"])
    scores = {name: [100 * y for y in curve] for name, curve in found["curves"].items()}
    speed = found["speed"]
    fast = {"times as fast": ([int(d) for d in speed], list(speed.values()))}
    depths = list(range(1, num + 1))
    panels = [
        panel("Spearman on STS-B dev (x 100)", {k: (depths, v) for k, v in scores.items()}, num, 0),
        panel("contrastive loss, nats (L3Prune)", {"loss": (depths, found["losses"])}, num, 1),
        panel("speed over the whole model's", fast, num, 2),
    ]
    height = len(panels) * (HEIGHT + 50)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    )
    return head + "".join(panels) + "</svg>\n"


def panel(title: str, curves: dict[str, Any], num_layers: int, number: int) -> str:
    values = [y for _, ys in curves.values() for y in ys]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1
    low, high = low - margin, high + margin
    top = TOP + number * (HEIGHT + 50)
    right = WIDTH - 120

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (right - LEFT) * (x - 1) / max(1, num_layers - 1)
        return across, top + HEIGHT * (1 - (y - low) / (high - low))

    parts = [f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{title}, by layers kept</text>']
    for step in range(5):
        value = low + margin + step * (high - low - 2 * margin) / 4
        _, y = place(1, value)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for depth in range(1, num_layers + 1):
        if depth == 1 or depth % max(1, num_layers // 6) == 0:
            x, _ = place(depth, low)
            parts.append(
                f'<text x="{x:.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{depth}</text>'
            )
    for row, ((name, (xs, ys)), colour) in enumerate(zip(curves.items(), COLOURS, strict=False)):
        points = [place(x, y) for x, y in zip(xs, ys, strict=True)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = top + 16 * row + 12
        parts.append(f'<text x="{right + 8}" y="{y}" fill="{colour}">{name}</text>')
    return "".join(parts)


if __name__ == "__main__":
    main()
