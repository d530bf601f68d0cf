"""A recipe that trains nano-lm on eight pairs."""

import json
from pathlib import Path

PAIRS = [
    ("a cat", "a kitten"),
    ("a car", "a vehicle"),
    ("the sea", "an ocean"),
    ("a house", "a small home"),
    ("bread", "a loaf"),
    ("a child plays", "kids are playing"),
    ("rain", "it is wet outside"),
    ("a book", "something to read"),
]
RECIPE = """
[system]
name = "mine"
paper = "-"
tasks = ["similarity"]

[embedder]
backbone = "polyvec/nano-lm"
pooling = "mean"

[[stage]]
kind = "scl"
batch_size = 4
learning_rate = 1e-3
data = [{ path = "FOLDER/pairs.jsonl" }]
"""


def write_recipe(folder: Path, stage: str) -> Path:
    """A recipe of one stage, with more settings of it, and the pairs beside it."""
    lines = [json.dumps({"anchor": a, "positive": b}) for a, b in PAIRS]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    path = folder / "mine.toml"
    path.write_text(RECIPE.replace("FOLDER", str(folder)) + stage)
    return path
