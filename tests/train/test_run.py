"""A run: stages of a recipe, its folder, and what it leaves."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from toy_run import PAIRS, write_recipe

from polyvec import Embedder, load_recipe
from polyvec.cli import main
from polyvec.train.report import read_curve


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path, "num_train_epochs = 10\n")


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


def test_a_dry_run_loads_no_weights_and_writes_nothing(recipe, capsys, monkeypatch):
    def loaded(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr("polyvec.embed.compose.load_transformer", loaded)
    before = sorted(recipe.parent.iterdir())
    status, _ = train(recipe, "--dry-run")
    assert (status, sorted(recipe.parent.iterdir())) == (0, before)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mine at scale full: 3,934,656 parameters"
    text = "\n".join(lines)
    assert "3,934,656 of 3,934,656 parameters (100 %)" in text
    assert "8 rows in 2 batches; 20 steps" in text
    assert "weights 15.7 MB, gradients 15.7 MB, optimiser 31.5 MB" in text
    query = next(line for line in lines if line.startswith("  query")).split(maxsplit=1)[1]
    assert query.removeprefix("⟦<s>").removesuffix("⟧") in dict(PAIRS)


def test_the_folder_of_a_run_tells_what_was_done(recipe):
    status, output = train(recipe)
    assert status == 0
    rows = read_curve(output / "stages" / "1-scl" / "curve.csv")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(0 <= row["padding"] < 1 and row["tokens_per_s"] > 0 for row in rows)
    ElementTree.parse(output / "stages" / "1-scl" / "curve.svg")
    card = (output / "model" / "README.md").read_text()
    assert "polyvec train" in card
    assert "| pairs | 8 |" in card
    stored = json.loads((output / "recipe.json").read_text())
    assert stored["recipe"]["stage"][0]["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", "no rows"),
        ('{"anchor": "a cat"}', "pairs.jsonl:1"),
        ('{"anchor": "a cat", "positive": ""}', "pairs.jsonl:1"),
    ],
    ids=["empty", "column", "text"],
)
def test_data_that_cannot_be_trained_on_are_one_line(recipe, capsys, rows, words):
    (recipe.parent / "pairs.jsonl").write_text(rows)
    status, _ = train(recipe)
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 2
    assert error.startswith("polyvec: ")
    assert words in error


def test_a_setting_that_is_not_known_stops_before_weights_load(recipe, capsys, monkeypatch):
    monkeypatch.setattr("polyvec.embed.compose.load_transformer", None)
    recipe.write_text(recipe.read_text().replace("batch_size", "bath_size"))
    status, output = train(recipe)
    assert (status, output.exists()) == (2, False)
    assert "'bath_size' is not known" in capsys.readouterr().err


def test_a_run_says_how_many_measured_texts_it_trains_on(recipe, capsys):
    """Two of the six distinct texts of the toy set are among the pairs."""
    toy = recipe.parent / "toy"
    toy.mkdir()
    rows = [("a cat", "The Danube", 1), ("a Kitten.", "Vienna", 0), ("tea", "a red lamp", 0.5)]
    lines = [json.dumps({"sentence1": a, "sentence2": b, "score": c}) for a, b, c in rows]
    (toy / "dev.jsonl").write_text("\n".join(lines))
    measured = ["--data", str(recipe.parent), "--evaluate", "toy dev spearman"]
    assert train(recipe, *measured)[0] == 0
    assert "toy dev: 2 of 6 texts are in the training texts" in capsys.readouterr().err


def test_a_figure_of_another_form_is_refused_before_training(recipe, capsys):
    status, output = train(recipe, "--evaluate", "stsb")
    assert status == 2
    assert "--evaluate 'stsb' is not '<data folder> <split> <measure>'" in capsys.readouterr().err
    assert not list(output.glob("stages/*/checkpoint-*"))
