"""Embedder.encode against SentenceTransformer.encode on the CPU.

Both in float32, the same weights and texts of mixed length, in alternating runs within one
process; figures are medians. The texts are the longer docstrings of the Python installation,
cut to log-uniform lengths of 8 to 256 words. CPU time is reported beside wall time,
which is unreliable on a shared machine.

    python benchmarks/encode_cpu.py             # about 4 minutes on two quiet cores
"""

import argparse
import statistics
import time
import warnings

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from polyvec import Embedder
from polyvec.data.docstrings import standard_library
from polyvec.embed.formats.sources import offline_folder
from polyvec.interfaces import RunOptions


def mixed_texts(count: int, seed: int = 0, words: tuple[int, int] = (8, 256)) -> list[str]:
    """Distinct texts of so many words, log-uniform, from the docstrings of this Python."""
    low, high = words
    found = " ".join(record.text for record in standard_library()).split()
    draw = np.random.default_rng(seed)
    lengths = np.exp(draw.uniform(np.log(low), np.log(high), count)).astype(int)
    starts = draw.integers(0, len(found) - 256, count)
    pairs = zip(starts, lengths, strict=True)
    return [" ".join(found[start : start + length]) for start, length in pairs]


def matmul_rate(model: Embedder, tokens: int = 2048) -> float:
    """GFLOP/s of the model's own largest matrix product on this machine; the best of 20 runs."""
    width, inner = model.backbone.hidden_size, model.backbone.model.config.intermediate_size
    a, b = torch.randn(tokens, width), torch.randn(inner, width)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * tokens * width * inner / best / 1e9


def useful_flop(model: Embedder, lengths: list[int]) -> float:
    """Multiplications and additions that the texts need without any padding."""
    config = model.backbone.model.config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    per_token = 2 * (4 * width * width + 2 * width * inner)
    return layers * sum(n * per_token + 4 * n * n * width for n in lengths)


def peer_padding(lengths: list[int], texts: list[str], batch_size: int = 32) -> float:
    """Ratio of padded to real tokens of the peer, which sorts by characters into batches of 32."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return padded / sum(lengths)


def timed(work) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    from sentence_transformers import SentenceTransformer

    texts = mixed_texts(options.texts)
    ours = Embedder.from_pretrained(offline_folder(), device="cpu")
    theirs = SentenceTransformer(str(offline_folder()), device="cpu")
    error = np.abs(ours.encode(texts[:64]) - theirs.encode(texts[:64])).max()
    lengths = [len(ids) for ids in theirs.tokenizer(texts, truncation=True)["input_ids"]]
    flop, rate = useful_flop(ours, lengths), matmul_rate(ours)

    runs: dict[str, list] = {"polyvec": [], "sentence-transformers": []}
    reports = []
    quiet = RunOptions(show_progress_bar=False, truncate="silent")
    for _ in range(options.runs):
        runs["polyvec"].append(
            timed(lambda: reports.append(ours.encode_with_report(texts, options=quiet)[1]))
        )
        runs["sentence-transformers"].append(
            timed(lambda: theirs.encode(texts, show_progress_bar=False))
        )

    report = reports[-1]
    tokenising = statistics.median(r.tokenize_s / (r.tokenize_s + r.forward_s) for r in reports)
    parts = [texts[i : i + 32] for i in range(0, len(texts), 32)]
    peer_tokenising = timed(lambda: [theirs.preprocess(part) for part in parts])
    padding = {
        "polyvec": report.num_computed_tokens / report.num_tokens,
        "sentence-transformers": peer_padding(lengths, texts),
    }
    shares = {"polyvec": tokenising}
    shares["sentence-transformers"] = peer_tokenising[0] / statistics.median(
        wall for wall, _ in runs["sentence-transformers"]
    )
    show(options, runs, lengths, flop, rate, padding, shares, error)


def show(options, runs, lengths, flop, rate, padding, shares, error) -> None:
    columns = ("texts/s", "texts/CPU-s", "tokens/s", "padded/real", "tokenising", "of matmul rate")
    table = Table("median of runs", *columns)
    for name, times in runs.items():
        wall = statistics.median(w for w, _ in times)
        cpu = statistics.median(c for _, c in times)
        table.add_row(
            name,
            f"{options.texts / wall:.1f}",
            f"{options.texts / cpu:.1f}",
            f"{sum(lengths) / wall:,.0f}",
            f"{padding[name]:.3f}",
            f"{shares[name]:.1%}",
            f"{flop / wall / 1e9 / rate:.0%}",
        )
    Console(width=110).print(table)
    both = list(zip(runs["polyvec"], runs["sentence-transformers"], strict=True))
    ratios = [theirs[0] / ours[0] for ours, theirs in both]
    cpu = [theirs[1] / ours[1] for ours, theirs in both]
    print(
        f"polyvec is {statistics.median(ratios):.2f} times as fast by wall time "
        f"({min(ratios):.2f} to {max(ratios):.2f}), {statistics.median(cpu):.2f} by CPU time"
    )
    print(
        f"{options.texts} texts, {sum(lengths)} tokens, {options.runs} runs each, alternating, "
        f"{torch.get_num_threads()} threads; matrix products: {rate:.0f} GFLOP/s; "
        f"largest difference of vectors {error:.1e}"
    )


if __name__ == "__main__":
    main()
