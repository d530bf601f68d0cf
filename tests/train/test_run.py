"""A run: stages of a recipe, its folder, and what it leaves."""

import json

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from polyvec import Embedder, load_recipe
from polyvec.cli import main

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
num_train_epochs = 10
data = [{ path = "FOLDER/pairs.jsonl" }]
"""


@pytest.fixture
def recipe(tmp_path):
    lines = [json.dumps({"anchor": a, "positive": b}) for a, b in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.replace("FOLDER", str(tmp_path)))
    return path


def train(recipe, *more):
    output = recipe.parent / "run"
    status = main(["train", str(recipe), "-o", str(output), *more])
    return status, output


def test_training_brings_pairs_together_and_both_libraries_load_the_model(recipe):
    status, output = train(recipe)
    assert status == 0
    trained = Embedder.from_pretrained(output / "model")
    assert found(trained) >= 7 / 8 > found(load_recipe(recipe).build())
    queries = [a for a, _ in PAIRS]
    theirs = SentenceTransformer(str(output / "model"), device="cpu").encode(queries)
    np.testing.assert_allclose(theirs, trained.encode(queries), atol=1e-5)


def found(embedder) -> float:
    """Share of queries whose document is the nearest."""
    queries, documents = zip(*PAIRS, strict=True)
    scores = embedder.similarity(embedder.encode(queries), embedder.encode(documents)).numpy()
    return float((scores.argmax(axis=1) == np.arange(len(PAIRS))).mean())
