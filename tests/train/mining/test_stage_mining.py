"""Mining within a run: before a stage, between epochs, and after a kill."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from toy_run import PAIRS, write_recipe

from polyvec import load_recipe
from polyvec.cli import main
from polyvec.data.training.batches import Batches
from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.sources import rows_of
from polyvec.errors import DataError, SettingsError
from polyvec.train.mining.candidates import Tools
from polyvec.train.mining.miner import mine
from polyvec.train.mining.settings import mining_settings
from polyvec.train.mining.stage import StageMining
from polyvec.train.settings import StageSettings

STAGE = """
num_train_epochs = 3
mining = { num_negatives = 2, refresh_epochs = 1 }
trainer = { save_steps = 1, save_total_limit = 50 }
"""


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path, STAGE)


def records():
    return rows_of([{"anchor": a, "positive": b} for a, b in PAIRS], name="pairs")


def stored(folder, number):
    return [json.loads(line) for line in (folder / f"{number}.jsonl").read_text().splitlines()]


@pytest.mark.medium
def test_a_run_mines_anew_each_epoch_and_resumes_to_the_same_weights(recipe, tmp_path):
    whole = tmp_path / "whole"
    assert main(["train", str(recipe), "-o", str(whole)]) == 0
    folder = whole / "stages" / "1-scl" / "mined"
    assert sorted(path.name for path in folder.iterdir()) == ["0.jsonl", "1.jsonl", "2.jsonl"]
    untrained = mine(
        records(), mining_settings({"num_negatives": 2}), tools=Tools(load_recipe(recipe).build())
    )
    assert [each["negatives"] for each in stored(folder, 0)] == [
        list(row.negatives) for row in untrained.mined_rows()
    ]
    assert stored(folder, 2) != stored(folder, 0)  # other weights find other negatives

    part = tmp_path / "part"
    shutil.copytree(whole, part)
    stage = part / "stages" / "1-scl"
    checkpoints = {int(path.name[11:]): path for path in stage.glob("checkpoint-*")}
    last = max(checkpoints)
    for step, path in checkpoints.items():
        if step > last // 2:  # in the middle of the second epoch
            shutil.rmtree(path)
    for path in (part / "model", stage / "final"):
        shutil.rmtree(path)
    (stage / "mined" / "2.jsonl").unlink()
    assert main(["train", str(recipe), "-o", str(part), "--resume"]) == 0
    assert stored(stage / "mined", 2) == stored(folder, 2)
    weights = [(each / "model" / "model.safetensors").read_bytes() for each in (whole, part)]
    assert weights[0] == weights[1]


@pytest.mark.medium
def test_two_processes_share_what_the_first_has_mined(recipe, tmp_path):
    text = recipe.read_text().replace("num_train_epochs = 3", "num_train_epochs = 2")
    text = text.replace("batch_size = 4", "batch_size = 4\nmixing = { duplicates = true }")
    recipe.write_text(text)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "polyvec", "train", str(recipe)]
    output = tmp_path / "run"
    done = subprocess.run(
        [*command, "-o", str(output)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = output / "stages" / "1-scl" / "mined"
    assert sorted(path.name for path in folder.iterdir()) == ["0.jsonl", "1.jsonl"]
    assert done.stderr.count("mined pairs") == 2
    untrained = mine(
        records(), mining_settings({"num_negatives": 2}), tools=Tools(load_recipe(recipe).build())
    )
    assert [each["negatives"] for each in stored(folder, 0)] == [
        list(row.negatives) for row in untrained.mined_rows()
    ]


def stage_mining(tmp_path, found=None, **mining):
    batches = Batches(TrainingData([found or records()]), 4)
    stage = StageSettings("scl", mining=mining)
    embedder = load_recipe("prompteol").build("nano")
    return StageMining(stage, batches, tmp_path, lambda: embedder), batches, embedder


def test_the_batches_have_the_negatives_of_their_epoch(tmp_path):
    mining, batches, embedder = stage_mining(tmp_path, num_negatives=2, refresh_epochs=2)
    embedder.train()
    state = torch.random.get_rng_state()
    for epoch, number in ((0, 0), (1, 0), (2, 1), (3, 1)):
        mining.begin(epoch)
        assert mining.number == number
        rows = batches.rows(epoch, 0)
        assert all(len(row.negatives) == 2 for row in rows)
        assert all(set(row.negatives).isdisjoint(row.positives) for row in rows)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert embedder.training
    assert batches.data.sets[0].rows[0].negatives != ()
    assert mining.own[0].rows[0].negatives == ()


def test_stored_negatives_of_other_data_are_refused(tmp_path):
    mining, _, _ = stage_mining(tmp_path, num_negatives=2)
    mining.begin(0)
    other = rows_of([{"anchor": "x", "positive": "y"}, {"anchor": "z", "positive": "w"}])
    again, _, _ = stage_mining(tmp_path, other, num_negatives=1)
    with pytest.raises(DataError, match="have the data changed"):
        again.begin(0)
    fewer = rows_of([{"anchor": a, "positive": b} for a, b in PAIRS[:5]])
    with pytest.raises(DataError, match="more rows"):
        stage_mining(tmp_path, fewer, num_negatives=1)[0].begin(0)


def test_sets_that_are_not_named_keep_their_rows(tmp_path):
    scored = rows_of([{"sentence1": "a", "sentence2": "b", "score": 2.0}], name="sts")
    batches = Batches(TrainingData([records(), scored]), 4)
    embedder = load_recipe("prompteol").build("nano")
    stage = StageSettings("scl", mining={"num_negatives": 1, "sets": ["pairs"]})
    StageMining(stage, batches, tmp_path, lambda: embedder).begin(0)
    assert batches.data.sets[1].rows[0].score == 2.0
    with pytest.raises(SettingsError, match="Did you mean 'pairs'"):
        stage = StageSettings("scl", mining={"sets": ["pair"]})
        StageMining(stage, batches, tmp_path, lambda: embedder)


def test_a_recipe_with_an_unknown_key_fails_before_the_model_loads(recipe, capsys):
    recipe.write_text(recipe.read_text().replace("num_negatives", "num_negative"))
    assert main(["train", str(recipe), "-o", str(recipe.parent / "run")]) == 2
    assert "Did you mean 'num_negatives'" in capsys.readouterr().err
