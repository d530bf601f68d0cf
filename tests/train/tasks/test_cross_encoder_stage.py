"""The stage that trains a cross-encoder: its losses, that it learns, and what a run leaves."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_language import Worker
from test_multi_task import embedder, worked

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import DataError, SettingsError
from polyvec.rerank.cross_encoder import CrossEncoder
from polyvec.train.engine import step
from polyvec.train.run import Run, run
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks import TASKS

ROWS = [
    TrainingRow("a cat", ("the cat sat on the mat",), ("the dog ran away",), teacher_scores=(3, 1)),
    TrainingRow(
        "a dog",
        ("the dog ran away",),
        ("the cat sat on the mat", "it rains"),
        teacher_scores=(2.5, 0.5, -1.0),
    ),
]

pytestmark = pytest.mark.filterwarnings("ignore:.*start at random")


def built(model, stage=None, **settings):
    facts = {"embedder": embedder(), "stage": stage or StageSettings("cross_encoder")}
    return TASKS.build("cross_encoder", {"model": str(model), **settings}, facts, where="[[stage]]")


def logits(task):
    pairs = [(row.query, text) for row in ROWS for text in (*row.positives, *row.negatives)]
    return torch.from_numpy(task.reranker.scores(pairs))


def test_bce_is_over_all_pairs(tiny_bert):
    torch.manual_seed(0)
    task = built(tiny_bert, positive_weight=2.0)
    task.reranker.eval()
    results, facts = worked(task.embedder, task, ROWS)
    wanted = torch.tensor([1.0, 0, 1, 0, 0])
    expected = F.binary_cross_entropy_with_logits(logits(task), wanted, weight=1 + wanted)
    assert task.loss(results, facts)["bce"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_margins_are_within_a_row(tiny_bert):
    torch.manual_seed(0)
    task = built(tiny_bert, loss="margin_mse")
    task.reranker.eval()
    results, facts = worked(task.embedder, task, ROWS)
    a, b, c, d, e = logits(task).tolist()
    expected = np.mean([(a - b - 2) ** 2, (c - d - 2) ** 2, (c - e - 3.5) ** 2])
    assert task.loss(results, facts)["margin_mse"].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.medium
@pytest.mark.parametrize("loss", ["bce", "margin_mse"])
def test_it_learns(tiny_bert, loss):
    torch.manual_seed(0)
    task = built(tiny_bert, loss=loss)
    trained = task.trained()
    assert trained.num_trained == trained.num_parameters
    assert not any(each.requires_grad for each in task.embedder.parameters())
    task.reranker.eval()  # without dropout: the model is two layers of random weights
    optimizer = torch.optim.AdamW(task.reranker.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        work = task.work(ROWS, [Share(0, len(ROWS))], 0)
        found = step(
            Worker(task.embedder, task),
            work.pieces,
            lambda results, facts=work.facts: task.loss(results, facts),
            cached=False,
            collect=work.ordered,
        )
        losses.append(float(found[loss]))
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
    for row in ROWS:
        texts = [*row.negatives, *row.positives]
        assert task.reranker.rank(row.query, texts)[0][0] == len(row.negatives)


@pytest.mark.medium
def test_a_run_leaves_the_reranker_and_the_embedder_as_it_was(tmp_path, tiny_bert):
    lines = [
        {"query": row.query, "pos": list(row.positives), "neg": list(row.negatives)} for row in ROWS
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    stage = StageSettings(
        "cross_encoder",
        data=({"path": str(tmp_path / "rows.jsonl")},),
        settings={"model": str(tiny_bert)},
        batch_size=2,
        max_steps=2,
        learning_rate=1e-3,
        max_length=48,
    )
    model = compose(EmbedderSettings("polyvec/nano-lm"))
    before = model.encode(["a cat"])
    found = run(Run((stage,), tmp_path / "run"), model)
    assert np.array_equal(found.encode(["a cat"]), before)
    reranker = CrossEncoder.load(tmp_path / "run/reranker")
    assert reranker.max_length == 48
    assert np.isfinite(reranker.scores([("a cat", "the cat sat")])).all()


def test_what_does_not_fit_is_refused(tiny_bert):
    with pytest.raises(DataError, match="a teacher's score for each of the 2 documents; got 0"):
        built(tiny_bert, loss="margin_mse").work(
            [TrainingRow("a", ("b",), ("c",))], [Share(0, 1)], 0
        )
    with pytest.raises(SettingsError, match="adapter is of stages that train the embedder"):
        built(tiny_bert, StageSettings("cross_encoder", adapter={"kind": "lora"}))
    with pytest.raises(SettingsError, match="no name of a folder"):
        built(tiny_bert, folder="../elsewhere")
    with pytest.raises(DataError, match="min_score"):
        built(tiny_bert).work(
            [TrainingRow("a", ("b",), matches=False, score=0.4)], [Share(0, 1)], 0
        )
