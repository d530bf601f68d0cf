"""Likelihoods, lengths and times: values by hand, and agreement with torch."""

import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polyvec.errors import DataError, SettingsError, ShapeError
from polyvec.evaluate.measures import (
    compression_rate,
    contrastive_nll,
    inference_time_s,
    perplexity,
)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_contrastive_nll_agrees_with_torch(temperature):
    similarities = np.random.default_rng(0).uniform(-1, 1, (20, 20))
    similarities[3] = 0.5  # all equal
    logits = torch.from_numpy(similarities) / temperature
    first = F.cross_entropy(logits, torch.zeros(20, dtype=torch.long)).item()
    assert contrastive_nll(similarities, temperature) == pytest.approx(first)
    in_batch = F.cross_entropy(logits, torch.arange(20)).item()
    assert contrastive_nll(similarities, temperature, range(20)) == pytest.approx(in_batch)


def test_contrastive_nll_by_hand():
    assert contrastive_nll([[0.2] * 5], 0.05) == pytest.approx(math.log(5))
    expected = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + 1))
    assert contrastive_nll([[0.2, 0.1, 0.0]], 0.1) == pytest.approx(expected)
    assert contrastive_nll([[1.0]], 0.1) == 0  # nothing to tell it from
    assert contrastive_nll([[-1e6, 1e6]], 1.0) == pytest.approx(2e6)  # no overflow
    assert contrastive_nll([[1e6, -1e6]], 1.0) == 0


def test_the_temperature_that_the_survey_leaves_out_matters():
    similarities = [[0.9, 0.1, 0.2]]
    naive = -math.log(math.exp(0.9) / sum(map(math.exp, similarities[0])))
    assert contrastive_nll(similarities, 1.0) == pytest.approx(naive)
    assert contrastive_nll(similarities, 0.05) < 1e-5 < 0.5 < naive


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    for length in (1, 7, 5000):
        assert perplexity([-math.log(50)] * length) == pytest.approx(50)
    assert perplexity([math.log(1 / 2), math.log(1 / 8)]) == pytest.approx(4)
    assert perplexity([0.0, 0.0]) == perplexity([1e-7]) == 1


def test_the_surveys_perplexity_grows_with_the_length():
    """Eq. 11 as printed is a product, without the root."""
    log_probs = np.log(np.random.default_rng(1).uniform(0.1, 0.9, 30))
    product = np.prod(1 / np.exp(log_probs))
    assert perplexity(log_probs) == pytest.approx(product ** (1 / 30))
    assert product > 100 * perplexity(log_probs)
    logits = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(12)
    chosen = logits.log_softmax(-1)[torch.arange(12), targets]
    assert perplexity(chosen.tolist()) == pytest.approx(
        F.cross_entropy(logits, targets).exp().item()
    )


def test_compression_rate_by_hand():
    assert compression_rate([8], [64]) == 0.125
    # A mean of rates, not a rate of means.
    assert compression_rate([8, 8], [64, 16]) == pytest.approx((1 / 8 + 1 / 2) / 2)
    assert compression_rate([0, 30], [10, 20]) == pytest.approx(0.75)


def test_inference_time_is_the_mean_after_the_warmup(monkeypatch):
    clock, seen = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def run(example):
        clock[0] += 2.0 if seen else 100.0  # the first call is slow
        seen.append(example)

    assert inference_time_s(run, ["a", "b", "c"]) == 2
    assert seen == ["a", "a", "b", "c"]
    seen.clear()
    assert inference_time_s(run, ["a", "b"], num_warmup=0) == (100 + 2) / 2
    assert inference_time_s(run, ["a", "b"], num_warmup=9) == 2
    assert seen == ["a", "b"] * 3


def test_errors_name_what_came():
    with pytest.raises(SettingsError, match="temperature must be above 0 and finite, got 0"):
        contrastive_nll([[1.0]], 0)
    with pytest.raises(DataError, match="vector 0 holds NaN"):
        contrastive_nll([[1.0, math.nan]], 1)
    with pytest.raises(ShapeError, match=r"\[N, E\], got shape \(2,\)"):
        contrastive_nll([1.0, 2.0], 1)
    with pytest.raises(ShapeError, match="1 positives for 2 queries"):
        contrastive_nll([[1.0], [2.0]], 1, [0])
    for positives in ([0, 2], [-1, 0], [0.0, 1.0]):
        with pytest.raises(DataError, match="positives must be columns from 0 to 1"):
            contrastive_nll([[1.0, 2], [2, 3]], 1, positives)
    with pytest.raises(DataError, match=r"0\.5 at index 1 is above 0"):
        perplexity([-1, 0.5])  # a negative log probability, or a probability
    for log_probs in ([-math.inf], [math.nan]):
        with pytest.raises(DataError, match="log probabilities hold NaN or infinity"):
            perplexity(log_probs)
    with pytest.raises(DataError, match="no log probabilities, expected"):
        perplexity([])
    for compressed, original in (([], []), ([1], [0]), ([-1], [4])):
        with pytest.raises(DataError, match="expected lengths of 0 or more, original ones above 0"):
            compression_rate(compressed, original)
    with pytest.raises(ShapeError, match="1 compressed lengths, 2 original"):
        compression_rate([1], [2, 3])
    with pytest.raises(DataError, match="no examples, expected"):
        inference_time_s(len, [])
