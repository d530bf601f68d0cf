"""The batched decoder over tiny random models of many families, against transformers."""

import decoders
import numpy as np
import pytest
import torch
from decoders import DECODERS, VOCAB
from transformers import AutoModelForCausalLM

from polyvec.embed.backbone.causal import CausalModel
from polyvec.embed.backbone.decoding import Decoder, Request
from polyvec.embed.backbone.likelihood import log_probabilities

LENGTHS = (3, 17, 9, 30, 4)
SHARED = tuple(range(5, 17))


def build(name):
    """With logits that differ clearly, so that a slip changes a token."""
    return decoders.build(name, AutoModelForCausalLM, factor=4)


def prompts(prefix=()):
    generator = np.random.default_rng(0)
    return [(*prefix, *generator.integers(3, VOCAB, n).tolist()) for n in LENGTHS]


@pytest.mark.parametrize("prefix", [(), SHARED], ids=["", "shared"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_batch_writes_what_the_model_writes_alone(name, prefix):
    lm = build(name)
    model = CausalModel(lm)
    # Of different lengths, so that rows leave from the middle of the batch.
    requests = [Request(ids, 12 - 3 * (n % 3)) for n, ids in enumerate(prompts(prefix))]
    assert (model.shared([each.ids for each in requests]) is not None) == bool(prefix)
    done = list(Decoder(model, {2}, batch_size=3).decode(requests))
    assert len(done) == len(requests)
    for request in requests:
        ids = torch.tensor([request.ids])
        settings = {"do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
        out = lm.generate(ids, max_new_tokens=request.max_new_tokens, **settings)
        expected = [token for token in out[0, ids.shape[1] :].tolist() if token != 2]
        assert request.new_ids == expected


@pytest.mark.parametrize("name", DECODERS)
def test_log_probabilities_are_those_of_a_forward_pass(name):
    lm = build(name)
    # Two prompts of different lengths have several continuations.
    before = [*prompts(SHARED), *[prompts(SHARED)[0]] * 2, *[prompts(SHARED)[3]] * 2]
    after = [*prompts(), (7, 8, 9, 10), (7, 8, 11), (9, 9, 9), (8, 9)]
    found = log_probabilities(CausalModel(lm), before, after)
    for prompt, more, values in zip(before, after, found, strict=True):
        with torch.no_grad():
            logits = lm(torch.tensor([prompt + more])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(more)), list(more)]
        np.testing.assert_allclose(values, expected, atol=1e-4)
