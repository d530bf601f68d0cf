"""Training from Python: rows in memory, a loss, an evaluator."""

import datasets
import numpy as np
import pytest
import torch
from checkpoints import checkpoint

import polyvec
from polyvec import Embedder, Trainer, TrainingArguments
from polyvec.errors import PolyvecError

TEXTS = [f"the {i} cats of {chr(97 + i)} sleep on {i * i} mats" for i in range(8)]
PAIRS = [{"anchor": text, "positive": text[4:16]} for text in TEXTS]
SCORED = datasets.Dataset.from_dict(
    {"sentence1": TEXTS, "sentence2": TEXTS[::-1], "score": [i / 8 for i in range(8)]}
)


@pytest.fixture
def embedder():
    return Embedder.from_pretrained(checkpoint("meta-llama/"), pooling="mean", device="cpu")


def arguments(folder, **more):
    given = {"max_steps": 4, "learning_rate": 1e-3, "per_device_train_batch_size": 4}
    return TrainingArguments(str(folder), use_cpu=True, logging_steps=1, **given | more)


@pytest.mark.parametrize(
    ("rows", "loss"),
    [
        (PAIRS, None),
        (datasets.Dataset.from_list(PAIRS), {"kind": "info_nce", "temperature": 0.1}),
        (SCORED, None),
        ({"pairs": PAIRS, "others": PAIRS[:4]}, ["info_nce"]),
        (PAIRS, lambda batch: (batch.query_BE - batch.document_NE).pow(2).mean()),
    ],
    ids=["list", "dataset", "scored", "several", "function"],
)
def test_a_data_set_and_a_loss_train(embedder, tmp_path, rows, loss):
    before = embedder.encode(TEXTS)
    seen = []
    trainer = Trainer(
        embedder,
        arguments(tmp_path, eval_strategy="steps", eval_steps=2, save_steps=2),
        rows,
        eval_dataset=rows,
        loss=loss,
        evaluator=lambda model: seen.append(model) or 0.5,
    )
    assert trainer.train().global_step == 4
    assert len(seen) == 2
    assert trainer.evaluate().keys() >= {"eval_score", "eval_loss"}
    after = trainer.model.encode(TEXTS)
    assert np.abs(after - before).max() > 1e-3
    trainer.save_model(tmp_path / "saved")
    again = Embedder.from_pretrained(tmp_path / "saved", device="cpu").encode(TEXTS)
    np.testing.assert_array_equal(again, after)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "data is empty"),
        ([{"anchor": "a", "positive": ""}], "empty"),
        ([{"anchor": "a"}, {"anchor": "b"}], "no positive"),
        (["a", "b"], "data 0 is str, expected a dict"),
        (None, "no train_dataset"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_one_line(embedder, tmp_path, rows, message):
    with pytest.raises(PolyvecError, match=message) as raised:
        Trainer(embedder, arguments(tmp_path), rows).train()
    assert "\n" not in str(raised.value)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(embedder, tmp_path):
    """And names the batch."""
    calls = []

    def loss(batch):
        calls.append(1)
        found = (batch.query_BE - batch.document_NE).pow(2).mean()
        return found * torch.nan if len(calls) == 3 else found

    trainer = Trainer(embedder, arguments(tmp_path, save_steps=1), PAIRS, loss=loss)
    with pytest.raises(PolyvecError, match=r"step 3: the loss 'loss' is not.*checkpoint-2"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]


def test_a_full_disk_at_a_checkpoint_keeps_the_last_whole_one(embedder, tmp_path, monkeypatch):
    from polyvec.train import trainer as module

    original = module.save_weights

    def full(state, path):
        original(state, path)
        if "checkpoint-2" in str(path):
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "save_weights", full)
    trainer = Trainer(embedder, arguments(tmp_path, save_steps=1), PAIRS)
    with pytest.raises(PolyvecError, match=r"checkpoint-2: could not be written.*checkpoint-1"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir() if "checkpoint" in path.name] == [
        "checkpoint-1"
    ]


def test_an_embedder_with_nothing_to_train_is_refused(embedder, tmp_path):
    with pytest.raises(PolyvecError, match="trains nothing"):
        Trainer(embedder, arguments(tmp_path, adapter={"kind": "frozen"}), PAIRS)


def test_transformers_own_arguments_are_refused(embedder):
    from transformers import TrainingArguments as Theirs

    with pytest.raises(PolyvecError, match=r"polyvec\.TrainingArguments"):
        Trainer(embedder, Theirs("out", use_cpu=True), PAIRS)


def test_names_are_public():
    assert polyvec.Trainer is Trainer


@pytest.mark.parametrize("hidden", [False, True])
def test_progress_is_shown_unless_it_is_disabled(hidden, embedder, tmp_path, capsys):
    args = arguments(tmp_path, disable_tqdm=hidden, save_strategy="no")
    Trainer(embedder, args, PAIRS).train()
    assert ("training, step 4 of 4: loss " in capsys.readouterr().err) is not hidden
