"""The stage that trains a reranker: its loss, what it trains, and what a run leaves."""

import json

import numpy as np
import pytest
import torch
from test_language import Worker
from test_multi_task import embedder, worked

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import DataError, SettingsError
from polyvec.rerank.true_false import TrueFalse
from polyvec.train.engine import step
from polyvec.train.run import Run, run
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks import TASKS

ROWS = [
    TrainingRow("a cat", ("the cat sat on the mat",), ("the dog ran away",)),
    TrainingRow("a dog", ("the dog ran away",), ("the cat sat on the mat", "it rains")),
]
ANSWERS = [True, False, True, False, False]
LORA = {"rank": 8, "dropout": 0.0}


def built(model="polyvec/nano-lm", stage=None, **settings):
    facts = {"embedder": embedder(), "stage": stage or StageSettings("true_false")}
    return TASKS.build("true_false", {"model": model, **settings}, facts, where="[[stage]]")


@pytest.mark.parametrize("model", ["polyvec/nano-lm", "polyvec/nano-t5"])
@pytest.mark.parametrize("over", ["vocabulary", "answers"])
def test_the_loss_is_that_of_the_right_answers(model, over):
    task = built(model, over=over)
    task.reranker.eval()
    results, facts = worked(task.embedder, task, ROWS)
    assert facts.tolist() == ANSWERS
    pairs = [(row.query, text) for row in ROWS for text in (*row.positives, *row.negatives)]
    of_true = torch.from_numpy(task.reranker.scores(pairs))
    if over == "answers":
        expected = -torch.where(facts, of_true, torch.log1p(-of_true.exp())).mean()
        assert task.loss(results, facts)["true_false"].item() == pytest.approx(
            expected.item(), rel=1e-4
        )
    else:  # all of the vocabulary takes its share
        expected = -torch.where(facts, *results["answers"].unbind(1)).mean()
        assert task.loss(results, facts)["true_false"].item() == pytest.approx(expected.item())
        mass = results["answers"].logsumexp(1)
        assert (mass < 0).all()
        assert (results["answers"][:, 0] - mass).tolist() == pytest.approx(
            of_true.tolist(), abs=1e-4
        )


@pytest.mark.medium
@pytest.mark.parametrize(("model", "lora"), [("polyvec/nano-lm", LORA), ("polyvec/nano-t5", None)])
def test_true_and_false_are_learnt(model, lora):
    torch.manual_seed(0)
    task = built(model, lora=lora)
    trained = task.trained()
    assert (trained.num_trained == trained.num_parameters) == (lora is None)
    assert not any(each.requires_grad for each in task.embedder.parameters())
    task.reranker.train()
    parameters = [each for each in task.reranker.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        work = task.work(ROWS, [Share(0, len(ROWS))], 0)
        step(
            Worker(task.embedder, task),
            work.pieces,
            lambda results, facts=work.facts: task.loss(results, facts),
            cached=False,
            collect=work.ordered,
        )
        optimizer.step()
    for row in ROWS:
        texts = [*row.positives, *row.negatives]
        assert task.reranker.rank(row.query, texts)[0][0] == 0


@pytest.mark.medium
def test_a_run_leaves_the_reranker_and_the_embedder_as_it_was(tmp_path):
    lines = [
        {"query": row.query, "pos": list(row.positives), "neg": list(row.negatives)} for row in ROWS
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    stage = StageSettings(
        "true_false",
        data=({"path": str(tmp_path / "rows.jsonl")},),
        settings={"model": "polyvec/nano-lm", "prompt": "monot5", "lora": LORA},
        batch_size=2,
        max_steps=2,
        learning_rate=1e-3,
        max_length=64,
    )
    model = compose(EmbedderSettings("polyvec/nano-lm"))
    before = model.encode(["a cat"])
    found = run(Run((stage,), tmp_path / "run"), model)
    assert np.array_equal(found.encode(["a cat"]), before)
    reranker = TrueFalse.load(tmp_path / "run/reranker")
    assert reranker.max_length == 64
    pairs = [("a cat", "the cat sat"), ("a dog", "it rains")]
    changed = reranker.scores(pairs) - TrueFalse.load("polyvec/nano-lm", max_length=64).scores(
        pairs
    )
    assert np.abs(changed).max() > 1e-3
    # A finished stage is not trained again, and its reranker stays.
    again = run(
        Run((stage,), tmp_path / "run"), compose(EmbedderSettings("polyvec/nano-lm")), resume=True
    )
    assert np.array_equal(again.encode(["a cat"]), before)
    assert (
        TrueFalse.load(tmp_path / "run/reranker").scores(pairs).tolist()
        == reranker.scores(pairs).tolist()
    )


@pytest.mark.parametrize(
    ("stage", "settings", "says"),
    [
        ({"losses": ({"kind": "info_nce"},)}, {}, "losses is of stages that train the embedder"),
        ({"adapter": {"kind": "lora"}}, {}, "set lora"),
        ({}, {"folder": "../elsewhere"}, "no name of a folder"),
        ({}, {"folder": "model"}, "no name of a folder"),
        ({}, {"prompt": "Query:"}, "no template"),
    ],
)
def test_settings_that_do_nothing_or_lead_elsewhere(stage, settings, says):
    with pytest.raises(SettingsError, match=says):
        built(stage=StageSettings("true_false", **stage), **settings)


def test_a_scored_pair_is_neither_true_nor_false():
    task = built()
    with pytest.raises(DataError, match="min_score"):
        task.work([TrainingRow("a", ("b",), matches=False, score=0.4)], [Share(0, 1)], 0)
