"""Every kind of stage on one batch: its loss falls, with each adapter that it is used with."""

import pytest
import torch
from test_eba import ROWS as PASSAGES
from test_language import Worker
from test_multi_task import MIXED, PAIRS, chat, debater, embedder

from polyvec.train.adapters import check_gradients, prepare
from polyvec.train.engine import step, total
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks import TASKS

pytestmark = pytest.mark.medium
LORA = {"kind": "lora", "rank": 8, "dropout": 0.0}
FULL = {"kind": "full"}
STAGES = {
    "mntp": (embedder, PASSAGES, {"probability": 0.5}, LORA),
    "ntp": (embedder, PAIRS, {}, FULL),
    "eba": (lambda: embedder(template="llama2vec", attention="native"), PASSAGES, {}, LORA),
    "multi_task": (embedder, MIXED, {"generation": ["chat"]}, FULL),
    "scl_mlm": (embedder, PAIRS, {"probability": 0.5}, FULL),
    "grl": (embedder, PAIRS, {}, LORA),
    "csit": (chat, PAIRS, {}, LORA),
    "deliberation": (debater, PAIRS, {}, LORA),
}


@pytest.mark.parametrize("kind", STAGES)
def test_the_loss_falls(kind):
    make, rows, settings, adapter = STAGES[kind]
    model, stage = make(), StageSettings(kind)
    facts = {"embedder": model, "stage": stage}
    task = TASKS.build(kind, settings, facts, where="[[stage]]")
    torch.manual_seed(0)
    prepare(model, adapter, head=getattr(task, "needs_head", False))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for number in range(12):
        optimizer.zero_grad()
        work = task.work(rows, [Share(0, len(rows))], 0)
        found = step(
            Worker(model, task),
            work.pieces,
            lambda results, facts=work.facts: task.loss(results, facts),
            cached=False,
            collect=work.ordered,
        )
        if not number:
            check_gradients(model)
        losses.append(float(total(found)))
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0], losses
