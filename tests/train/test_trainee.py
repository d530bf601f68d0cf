"""A step of a stage on a real backbone: the cache and checkpointing change no gradient."""

import dataclasses

import pytest
import torch
from checkpoints import checkpoint
from processes import rows

from polyvec import Embedder
from polyvec.train import engine
from polyvec.train.adapters import prepare
from polyvec.train.dropout import dropout_set
from polyvec.train.exchange import Exchange
from polyvec.train.settings import StageSettings
from polyvec.train.tasks import TASKS
from polyvec.train.trainee import Trainee

STAGE = StageSettings(
    kind="scl",
    adapter={"kind": "lora", "rank": 4, "dropout": 0.2},
    max_length=12,
    losses=({"kind": "info_nce", "temperature": 0.02}, {"kind": "info_nce_learned", "weight": 0.3}),
    matryoshka={"dimensions": (8, 32), "layers": True, "layers_per_step": 0},
)
STAGES = {
    "scl": STAGE,
    "dynamic negatives": dataclasses.replace(
        STAGE, settings={"dynamic_negatives": {"num_negatives": 1, "every": 1}}
    ),
    "scl_mlm": dataclasses.replace(STAGE, kind="scl_mlm", settings={"probability": 0.5}),
    "diffcse": StageSettings(
        kind="diffcse", adapter=STAGE.adapter, max_length=12, settings={"mask": "of", "weight": 0.5}
    ),
}
KINDS = {
    "cached": {"gradient_cache": 30},
    "checkpointed": {"gradient_checkpointing": True},
    "cached and checkpointed": {"gradient_cache": 30, "gradient_checkpointing": True},
}


def trainee(stage: StageSettings, backbone: str = "meta-llama/", **options) -> Trainee:
    folder = checkpoint(backbone)
    embedder = Embedder.from_pretrained(folder, pooling="mean", device="cpu", **options)
    torch.manual_seed(0)
    task = TASKS.build(stage.kind, stage.settings, {"embedder": embedder, "stage": stage}, where="")
    prepare(embedder, stage.adapter)
    with torch.no_grad():  # B is zero at first, and A then without gradient
        for name, each in embedder.named_parameters():
            if "lora_B" in name:
                each.normal_(std=0.1)
    found = Trainee(embedder, task)
    found.double()  # rounding errors would be of the size of the tolerance
    if stage.gradient_checkpointing:
        found.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    return found.train()


def gradients(stage: StageSettings, **options) -> tuple[engine.Terms, dict, int]:
    made = trainee(stage, **options)
    exchange = Exchange()
    if (dynamic := getattr(made.task, "dynamic", None)) is not None:
        made.task.prepare(rows(6))
        made.task.batch_number = 1
        dynamic.first_Rn.fill_(0.9)
        dynamic.last_Rn.fill_(0.1)  # all are easy now
    work = made.task.work(rows(6), exchange.shares(6), 0)
    if dynamic is not None:
        assert dynamic.place_Rn.flatten().tolist() == [0, 0, 1] * 2, "of rows with two negatives"
    torch.manual_seed(1)  # of dropout
    with dropout_set(made.embedder, attention_dropout=stage.attention_dropout):
        terms = engine.step(
            made,
            work.pieces,
            lambda found: made.task.loss(found, work.facts),
            cached=stage.gradient_cache > 0,
            collect=lambda found: exchange.collect(work, found),
        )
    grads = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    return terms, grads, len(work.pieces)


@pytest.mark.filterwarnings("ignore::polyvec.errors.UntrainedAttentionWarning")
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STAGES)
def test_cache_and_checkpointing_change_neither_loss_nor_gradient(name, kind, layout):
    """With LoRA, its dropout and the attention's, hard negatives and a temperature."""
    plain = dataclasses.replace(STAGES[name], attention_dropout=0.1)
    # The same pieces, so that the same numbers are dropped.
    stage = dataclasses.replace(plain, **KINDS[kind])
    one = dataclasses.replace(plain, gradient_cache=stage.gradient_cache)
    options = {"layout": layout, "backbone": "bos:meta-llama/", "attention": "bidirectional"}
    expected_terms, expected, _ = step_without_cache(one, **options)
    terms, found, num_pieces = gradients(stage, **options)
    if stage.gradient_cache:
        assert num_pieces > 3
    torch.testing.assert_close(terms, expected_terms, rtol=0, atol=1e-6)
    assert set(found) == set(expected)
    assert any(float(each.abs().max()) > 1e-3 for each in found.values())
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, rtol=0, atol=1e-6, msg=name)


def step_without_cache(stage: StageSettings, **options):
    cut = engine.step

    def whole(*args, cached, **kwargs):
        return cut(*args, cached=False, **kwargs)

    engine.step = whole
    try:
        return gradients(stage, **options)
    finally:
        engine.step = cut
