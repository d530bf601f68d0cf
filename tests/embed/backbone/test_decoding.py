"""Rows that grow together: rounding in the batch changes no answer, and what rows are held to."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from polyvec.embed.backbone.causal import CausalModel
from polyvec.embed.backbone.decoding import Decoder, Request
from polyvec.embed.backbone.drawing import Drawing
from polyvec.errors import GenerationError, ModelError

VOCAB = 64


@pytest.fixture(scope="module")
def twins():
    """A model in which token 2n + 1 is nearly as likely as token 2n, always."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    lm = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
        lm.lm_head.weight[1::2] = lm.lm_head.weight[::2] * (1 + 1e-6)
    return CausalModel(lm)


class Rounding:
    """The model, with noise in its batches as other kernels would make it."""

    def __init__(self, model, size):
        self.model, self.size = model, size

    def __getattr__(self, name):
        return getattr(self.model, name)

    def step(self, *inputs):
        logits_BV = self.model.step(*inputs)
        noise_BV = torch.rand(logits_BV.shape) * 2 - 1
        return logits_BV + noise_BV * self.size * logits_BV.abs().amax(1, keepdim=True)


def requests(drawing):
    return [
        Request((5, n, 3 * n % VOCAB)[: 1 + n % 3], 20, replace(drawing, seed=n))
        for n in range(1, 9)
    ]


def written(model, given, **options):
    list(Decoder(model, {60}, **options).decode(given))
    return [each.new_ids for each in given]


@pytest.mark.parametrize("drawing", [Drawing(), Drawing(0.7), Drawing(1.0, top_p=0.8)])
def test_rounding_in_a_batch_changes_no_answer(twins, drawing):
    """Rounding much larger than a real one, so that drawn tokens show it, too."""
    expected = [written(twins, [each])[0] for each in requests(drawing)]
    assert len({tuple(each) for each in expected}) > 2
    found = {}
    for tolerance in (0.0, 0.22):
        decoder = Decoder(Rounding(twins, 0.2), {60}, batch_size=5)
        decoder._noise = tolerance
        given = requests(drawing)
        list(decoder.decode(given))
        found[tolerance] = [each.new_ids for each in given]
    assert found[0.22] == expected
    assert decoder.recomputed > 0
    assert found[0.0] != expected


class Even:
    """Only even tokens, and four of them."""

    def allowed(self, new_ids):
        mask_V = torch.zeros(VOCAB, dtype=torch.bool)
        mask_V[::2] = True
        return mask_V

    def is_done(self, new_ids):
        return len(new_ids) == 4


@pytest.mark.parametrize("drawing", [Drawing(), Drawing(1.0)])
def test_a_constraint_masks_and_ends_its_row(twins, drawing):
    held = [Request((5, n), 9, drawing, constraint=Even()) for n in range(3)]
    free = [Request((5, n), 9, drawing) for n in range(3)]
    alone = [Request((5, n), 9, drawing) for n in range(3)]
    found = written(twins, [*held, *free])
    assert all(len(each) == 4 and not any(token % 2 for token in each) for each in found[:3])
    assert all(each.finish == "stop" for each in held)
    assert found[3:] == written(twins, alone)


def test_a_constraint_without_a_way_on_is_an_error_of_its_row(twins):
    class Nothing(Even):
        def allowed(self, new_ids):
            return torch.zeros(VOCAB, dtype=torch.bool)

    given = [Request((5,), 3, constraint=Nothing()), Request((6,), 3)]
    assert written(twins, given)[1] and "allows no token" in given[0].error


def test_numbers_that_are_none_are_an_error():
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=9,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).eval()
    with torch.no_grad():
        lm.model.norm.weight.fill_(torch.nan)
    with pytest.raises(GenerationError, match="not finite"):
        written(CausalModel(lm), [Request((1,), 2)])


def test_other_states_than_keys_and_values_are_refused():
    lm = MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(ModelError, match=r"Mamba.* keeps other states"):
        CausalModel(lm)
