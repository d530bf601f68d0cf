"""all-MiniLM-L6-v2, made better at a domain that it is weak in: shell commands for descriptions.

python examples/finetune_your_own.py DATA OUTPUT     (about 6 minutes on two cores)
"""

import random
import sys
from pathlib import Path

from polyvec import Embedder, Trainer, TrainingArguments
from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.sets import RetrievalSet
from polyvec.data.texts import read_rows
from polyvec.evaluate.tasks import Evaluator

data, output = Path(sys.argv[1]), Path(sys.argv[2])
rows = [row for _, row in read_rows(data / "code_pairs" / "nl2bash.jsonl.gz")]
# Split by command before training: the same command has several descriptions.
commands = sorted({row["code"] for row in rows})
held_out = set(random.Random(0).sample(commands, len(commands) // 10))
train = [{"anchor": r["query"], "positive": r["code"]} for r in rows if r["code"] not in held_out]
asked = {str(i): row for i, row in enumerate(rows) if row["code"] in held_out}
ids = {command: str(i) for i, command in enumerate(commands)}
domain = RetrievalSet(
    name="nl2bash",
    split="held out",
    corpus={ids[command]: command for command in commands},
    queries={i: row["query"] for i, row in asked.items()},
    qrels={i: {ids[row["code"]]: 1} for i, row in asked.items()},
)


def scores(model: Embedder) -> dict[str, float]:
    sets = {"nDCG@10, held-out commands": domain, "STS-B test": read_folder(data / "stsb", "test")}
    return {name: Evaluator(model).measure(each).outcome.main_score for name, each in sets.items()}


embedder = Embedder.from_pretrained()
before = scores(embedder)
args = TrainingArguments(
    output, per_device_train_batch_size=64, learning_rate=5e-5, max_steps=150, logging_steps=20
)
Trainer(embedder, args, train, loss={"kind": "info_nce", "temperature": 0.05}).train()
for name, score in scores(embedder.eval()).items():
    print(f"{name}: {100 * before[name]:.2f} -> {100 * score:.2f}")
embedder.save_pretrained(output / "model")
