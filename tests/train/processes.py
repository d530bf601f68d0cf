"""Ten steps of a contrastive stage on nano-lm; run by torchrun, or alone. See test_exchange.py."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from polyvec import Embedder
from polyvec.data.training.batches import Batches
from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet
from polyvec.nano import nano_lm_path
from polyvec.train.adapters import prepare
from polyvec.train.arguments import training_arguments
from polyvec.train.settings import StageSettings
from polyvec.train.tasks import TASKS
from polyvec.train.trainee import Trainee
from polyvec.train.trainer import StageTrainer, whole_state

WORDS = "the sea a house of bread and rain over old books in spring when children play far away"


def rows(count: int) -> list[TrainingRow]:
    """Texts of different lengths, with one to three documents each."""
    words = WORDS.split()
    found = []
    for number in range(count):
        text = " ".join(words[(number + i) % len(words)] for i in range(3 + number % 5))
        negatives = tuple(f"{text} {i} not" for i in range(number % 3))
        found.append(TrainingRow(f"{number} {text}", (f"{text} {number}",), negatives))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--fsdp", action="store_true")
    options = parser.parse_args()
    embedder = Embedder.from_pretrained(nano_lm_path(), pooling="mean", device="cpu")
    embedder.double()  # in float32 rounding errors grow to 1e-5 within ten steps
    stage = StageSettings(
        kind="scl",
        batch_size=7,
        max_steps=10,
        learning_rate=2e-4,
        gradient_cache=48 if options.cached else 0,
        adapter={"kind": "lora", "dropout": 0.0} if options.lora else None,
        # Losses are in float32, and Adam's quotient of tiny gradients makes a step of a rounding
        # error; a wrong scale of the gradient would not show without an epsilon of its size.
        trainer={"adam_epsilon": 1e-4} | ({"fsdp": True} if options.fsdp else {}),
    )
    task = TASKS.build(stage.kind, {}, {"embedder": embedder, "stage": stage}, where="test")
    torch.manual_seed(0)  # of the adapter's first weights
    prepare(embedder, stage.adapter)
    embedder.double()
    losses: list[float] = []
    data = TrainingData([TrainingSet("texts", rows(70))])
    batches = Batches(data, 7)
    trainer = StageTrainer(
        Trainee(embedder, task),
        training_arguments(stage, options.output, 10),
        batches,
        cached=options.cached,
        on_step=lambda trainer, work, terms: losses.append(float(sum(terms.values()))),
    )
    trainer.train()
    state = {k: v.contiguous().clone() for k, v in whole_state(trainer.trained()).items()}
    if trainer.exchange.rank == 0:
        options.output.mkdir(exist_ok=True)
        (options.output / "losses.json").write_text(json.dumps(losses))
        save_file(state, options.output / "weights.safetensors")


if __name__ == "__main__":
    main()
