"""The operations that a run's MFU is made of, beside those that torch counts."""

import dataclasses

import pytest
from torch.utils.flop_counter import FlopCounterMode
from toy_run import PAIRS

from polyvec import load_recipe
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.sections import EMBEDDER
from polyvec.train import engine
from polyvec.train.adapters import prepare
from polyvec.train.exchange import Exchange
from polyvec.train.meter import Meter
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks.contrastive import contrastive
from polyvec.train.trainee import Trainee

ROWS = [TrainingRow(query=a, positives=(b,)) for a, b in PAIRS]
INFO_NCE = ({"kind": "info_nce"},)
RANK = ({"kind": "rank"}, {"kind": "recovery"})


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("adapter", "losses"),
    [("full", INFO_NCE), ("lora", INFO_NCE), ("frozen", INFO_NCE), ("frozen", RANK)],
)
def test_operations_are_those_that_torch_counts(adapter, losses, cached):
    """In the first step and in the second, which has the same texts: kept ones are not counted."""
    settings = load_recipe("causal-mean").at(EMBEDDER, "nano")
    settings = dataclasses.replace(settings, projections=({"kind": "residual_adapter"},))
    embedder = compose(settings)
    task = contrastive(embedder, StageSettings("scl", losses=losses, gradient_cache=40 * cached))
    prepare(embedder, {"kind": adapter})
    trainee = Trainee(embedder, task)
    meter = Meter(embedder, trainee.jobs, cached=cached, checkpointed=False, half=False)
    for _ in range(2):
        before = meter.flops
        work = task.work(ROWS, [Share(0, len(ROWS))], 0)
        assert (len(work.pieces) > 1) == cached
        with FlopCounterMode(display=False) as counter:
            terms = engine.step(
                trainee,
                work.pieces,
                lambda found, work=work: task.loss(work.ordered(found), work.facts),
                cached=cached,
            )
        meter.add(work, terms)
        # torch counts attention scores and the similarities of a batch, too.
        assert meter.flops - before == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_a_peak_that_was_measured_on_a_busy_machine_is_measured_again():
    embedder = load_recipe("causal-mean").build("nano")
    meter = Meter(embedder, {}, cached=False, checkpointed=False, half=False)
    peak = meter.peak
    meter.peak, meter.flops = peak / 1000, peak / 10
    meter.began -= 1.0  # a tenth of the peak, for a second
    assert 0.02 < meter.read(Exchange())["mfu"] < 0.5
    assert meter.peak > peak / 5
