"""A stage whose losses read vectors before a projection: frozen ones are computed once."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy_run import PAIRS

from polyvec import Trainer, TrainingArguments, load_recipe
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.sections import EMBEDDER
from polyvec.errors import SettingsError
from polyvec.train.adapters import prepare
from polyvec.train.dropout import check_views, dropout_set
from polyvec.train.engine import joined
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks.contrastive import contrastive, unsupervised

ROWS = [TrainingRow(query=a, positives=(b,)) for a, b in PAIRS]
LOSSES = (
    {"kind": "rank", "reduction": "sum"},
    {"kind": "recovery", "weight": 0.1},
    {"kind": "query_prediction", "weight": 0.01},
)


def adapted(**more):
    """nano-lm with a residual adapter that is not the identity."""
    settings = load_recipe("causal-mean").at(EMBEDDER, "nano")
    projections = ({"kind": "residual_adapter"},)
    found = compose(dataclasses.replace(settings, projections=projections, **more))
    torch.manual_seed(0)
    torch.nn.init.normal_(found.projections[0].out.weight, std=0.05)
    return found


def batch_of(embedder, task):
    work = task.work(ROWS, [Share(0, len(ROWS))], 0)
    found = [task.jobs[piece.job](embedder, piece.payload) for piece in work.pieces]
    return task.compared(work.ordered(joined(work.pieces, found)), work.facts)


@pytest.mark.parametrize("adapter", ["frozen", "full"])
def test_vectors_before_and_after_the_adapter(adapter):
    embedder = adapted()
    task = contrastive(embedder, StageSettings("scl", losses=LOSSES))
    prepare(embedder, {"kind": adapter})
    plain = load_recipe("causal-mean").build("nano")
    for _ in range(2):  # the second from what was kept
        batch = batch_of(embedder, task)
        queries, documents = zip(*PAIRS, strict=True)
        for found, texts, model in (
            (batch.base_query_BE, queries, plain),
            (batch.base_document_NE, documents, plain),
            (batch.query_BE, queries, embedder),
            (batch.document_NE, documents, embedder),
        ):
            wanted = torch.tensor(model.encode(texts))
            torch.testing.assert_close(found.detach(), wanted, rtol=1e-4, atol=1e-4)
    assert batch.query_BE.requires_grad


def test_a_frozen_model_reads_each_text_once():
    embedder = adapted()
    task = contrastive(embedder, StageSettings("scl", losses=LOSSES))
    prepare(embedder, {"kind": "frozen"})
    calls = []
    hook = embedder.backbone.register_forward_hook(lambda *_: calls.append(1))
    first, again = (batch_of(embedder, task) for _ in range(2))
    hook.remove()
    assert len(calls) == 1
    torch.testing.assert_close(first.query_BE, again.query_BE)


@pytest.mark.medium
def test_an_adapter_learns_and_stays_near_the_vectors_before_it(tmp_path):
    queries, documents = zip(*PAIRS, strict=True)
    rows = [{"anchor": a, "positive": b} for a, b in PAIRS]
    base = np.asarray(load_recipe("causal-mean").build("nano").encode(queries))

    def run(name, losses):
        embedder = adapted()
        args = TrainingArguments(
            tmp_path / name,
            per_device_train_batch_size=8,
            max_steps=60,
            learning_rate=1e-3,
            adapter={"kind": "frozen"},
            use_cpu=True,
            save_strategy="no",
        )
        Trainer(embedder, args, rows, loss=losses).train()
        vectors = [torch.tensor(np.asarray(embedder.encode(each))) for each in (queries, documents)]
        scores = F.normalize(vectors[0]) @ F.normalize(vectors[1]).T
        away = float(np.abs(vectors[0].numpy() - base).sum(1).mean())
        return float(scores.diag().mean() - scores.mean()), away

    free, far = run("free", [LOSSES[0]])
    kept, near = run("kept", [LOSSES[0], {**LOSSES[1], "weight": 1.0}, LOSSES[2]])
    assert free > 0.2 and kept > 0.05
    assert near < far / 2


def test_a_flow_on_a_frozen_model_makes_its_vectors_likelier():
    """BERT-flow: a stage "ucl" whose loss is the likelihood of the vectors before the flow."""
    settings = load_recipe("causal-mean").at(EMBEDDER, "nano")
    projections = ({"kind": "flow", "num_blocks": 2},)
    embedder = compose(dataclasses.replace(settings, projections=projections))
    stage = StageSettings("ucl", losses=({"kind": "flow_nll"},), max_length=16)
    task = unsupervised(embedder, stage)
    check_views(task, embedder, "a likelihood needs no dropout")
    both = dataclasses.replace(stage, losses=(*stage.losses, {"kind": "info_nce"}))
    with pytest.raises(SettingsError, match="no dropout is active"):
        check_views(unsupervised(embedder, both), embedder, "stage 1")
    prepare(embedder, {"kind": "frozen"})
    trained = [each for each in embedder.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.02)
    values = []
    for _ in range(10):
        optimizer.zero_grad()
        (value,) = task.objective(batch_of(embedder, task)).values()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0] - 10


def test_two_readings_of_a_text_are_apart_under_a_frozen_backbone():
    """What is kept of a text knows no dropout, so both of its vectors would be equal."""
    embedder = adapted()
    losses = ({"kind": "info_nce"}, {"kind": "recovery"})
    task = unsupervised(embedder, StageSettings("ucl", losses=losses))
    prepare(embedder, {"kind": "frozen"})
    with dropout_set(embedder, attention_dropout=0.2):
        embedder.train()
        batch = batch_of(embedder, task)
    assert batch.query_BE.shape == batch.document_NE.shape
    assert not torch.isclose(batch.query_BE, batch.document_NE, atol=1e-4).all(dim=1).any()
