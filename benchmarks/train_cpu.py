"""Pairs a second of contrastive training on the CPU, beside sentence-transformers' trainer.

    python benchmarks/train_cpu.py --data DATA            (about 10 minutes on two cores)

all-MiniLM-L6-v2 in float32 without dropout, InfoNCE at temperature 0.05 (their
MultipleNegativesRankingLoss with scale 20), pairs of mixed lengths (questions with short and long
answers), the same batches in the same order, plain and with the gradient cache (their
CachedMultipleNegativesRankingLoss). Both in alternating runs of one process; medians. Then the peak
memory of a process that takes steps of 64 and of 1,024 pairs with the cache.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer import losses

from polyvec import Embedder, Trainer, TrainingArguments
from polyvec.data.training.sources import training_rows
from polyvec.embed.formats.sources import DEFAULT_MODEL, model_folder

RUNS, STEPS, BATCH, LENGTH, PIECE = 3, 4, 64, 128, 4096
MINI_BATCH = 32  # texts of a piece of theirs, about as many tokens as PIECE
SHARED: dict[str, Any] = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def pairs(data: Path, count: int) -> list[dict[str, str]]:
    """Short and long ones, all texts different, in a drawn order."""
    found, seen = [], set()
    for name in ("medquad", "squad_qg_pairs", "quora_pairs"):
        for row in training_rows({"name": name, "limit": count}, data):
            texts = {row.query, row.positives[0]}
            if len(texts) == 2 and not texts & seen:
                seen |= texts
                found.append({"anchor": row.query, "positive": row.positives[0]})
    return random.Random(0).sample(found, count)


class InOrder(DefaultBatchSampler):
    """Batches of neighbours."""

    def __init__(self, dataset: Any, batch_size: int, drop_last: bool = True, **_: Any) -> None:
        sampler = torch.utils.data.SequentialSampler(dataset)
        super().__init__(sampler, batch_size=batch_size, drop_last=drop_last)


def ours(rows: list[dict[str, str]], *, cached: bool, batch: int = BATCH) -> list[float]:
    """The loss of each step."""
    embedder = Embedder.from_pretrained(device="cpu", max_seq_length=LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            max_steps=len(rows) // batch,
            gradient_cache=PIECE if cached else 0,
            dropout=0.0,
            attention_dropout=0.0,
            mixing={"shuffle": False},
            **SHARED,
        )
        loss = {"kind": "info_nce", "temperature": 0.05}
        trainer = Trainer(embedder, args, rows, loss=loss)
        trainer.train()
        return logged(trainer.loop.state.log_history)


def theirs(rows: list[dict[str, str]], *, cached: bool, batch: int = BATCH) -> list[float]:
    model = SentenceTransformer(str(model_folder(DEFAULT_MODEL)), device="cpu")
    model.max_seq_length = LENGTH
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss: Any = losses.MultipleNegativesRankingLoss(model)
    if cached:
        loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=MINI_BATCH)
    with tempfile.TemporaryDirectory() as folder:
        args = SentenceTransformerTrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            max_steps=len(rows) // batch,
            batch_sampler=InOrder,
            **SHARED,
        )
        trainer = SentenceTransformerTrainer(
            model, args, train_dataset=datasets.Dataset.from_list(rows), loss=loss
        )
        trainer.train()
        return logged(trainer.state.log_history)


def logged(history: list[dict[str, float]]) -> list[float]:
    return [entry["loss"] for entry in history if "loss" in entry]


def alternating(rows: list[dict[str, str]], *, cached: bool) -> None:
    ways: dict[str, Callable[..., list[float]]] = {"polyvec": ours, "sentence-transformers": theirs}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    curves = {}
    for _ in range(RUNS):
        for name, way in ways.items():
            began, spent = time.perf_counter(), time.process_time()
            curves[name] = way(rows, cached=cached)
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - spent)
    print(
        f"{'with the gradient cache' if cached else 'plain'}, {len(rows) // BATCH} steps of {BATCH}"
    )
    for name in ways:
        rate = len(rows) / statistics.median(wall[name])
        cost = len(rows) / statistics.median(cpu[name])
        print(f"  {name:24} {rate:7.2f} pairs/s {cost:7.2f} /CPU-s  loss {curves[name][-1]:.4f}")
    first, second = (curves[name] for name in ways)
    ratios = [statistics.median(x["sentence-transformers"]) / statistics.median(x["polyvec"])
              for x in (wall, cpu)]  # fmt: skip
    apart = max(abs(a - b) for a, b in zip(first, second, strict=True))
    print(f"  ours {ratios[0]:.2f} times as fast ({ratios[1]:.2f} by CPU time); losses differ by")
    print(f"  {apart:.1e} at most")


def memory(data: Path, batch: int) -> None:
    """Two steps of a batch with the cache, in this process, and its peak memory."""
    rows = pairs(data, 2 * batch)
    ours(rows, cached=True, batch=batch)
    # Not getrusage, whose maximum a new process takes over from the one that started it.
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    (peak,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(f"  batch {batch:5}: peak {peak / 1024:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--memory", type=int, help="peak memory of this batch alone")
    options = parser.parse_args()
    if options.memory:
        memory(options.data, options.memory)
        return
    print(f"all-MiniLM-L6-v2, {torch.get_num_threads()} threads, texts of at most {LENGTH} tokens")
    rows = pairs(options.data, STEPS * BATCH)
    for cached in (False, True):
        alternating(rows, cached=cached)
    print(f"gradient cache, pieces of {PIECE} tokens")
    for batch in (64, 256, 1024):
        command = [sys.executable, __file__, "--data", str(options.data), "--memory", str(batch)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
