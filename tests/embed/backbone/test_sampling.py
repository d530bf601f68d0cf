"""Our sampling loop against transformers' generate, and what it refuses."""

import numpy as np
import pytest
import torch
import transformers as tf
from checkpoints import checkpoint

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.sampling import check_writes, sample
from polyvec.errors import ModelError

IDS = np.array([7, 9, 20, 11], np.int32)


def load(family: str, **options) -> Backbone:
    lm = tf.AutoModelForCausalLM.from_pretrained(checkpoint(family)).eval()
    return Backbone(lm.base_model, 0, lm=lm, **options)


def drawn(backbone: Backbone, seed: int, stop=lambda tokens: False) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return sample(backbone, IDS, temperature=0.7, max_new_tokens=12, generator=generator, stop=stop)


@pytest.mark.parametrize("family", ["meta-llama/", "EleutherAI/pythia", "bigscience/bloom"])
def test_the_tokens_are_those_of_transformers(family):
    backbone = load(family)
    plain = tf.AutoModelForCausalLM.from_pretrained(checkpoint(family)).eval()
    for seed in range(5):
        torch.manual_seed(seed)
        out = plain.generate(
            torch.from_numpy(IDS)[None].long(),
            attention_mask=torch.ones(1, len(IDS), dtype=torch.long),
            max_new_tokens=12,
            do_sample=True,
            temperature=0.7,
            top_k=50,
            pad_token_id=0,
        )
        expected = [int(token) for token in out[0, len(IDS) :]]
        ends = plain.generation_config.eos_token_id
        assert drawn(backbone, seed) == expected[: [*expected, ends].index(ends)]


def test_a_bidirectional_embedder_writes_causally():
    causal, both = load("meta-llama/"), load("meta-llama/", attention="bidirectional")
    for seed in range(3):
        assert drawn(both, seed) == drawn(causal, seed)


def test_stop_ends_the_text_and_changes_nothing_before():
    backbone = load("meta-llama/")
    whole = drawn(backbone, 1)
    assert len(whole) > 4
    assert drawn(backbone, 1, stop=lambda tokens: len(tokens) == 4) == whole[:4]


def test_models_that_cannot_write_are_refused():
    encoder = tf.AutoModel.from_pretrained(checkpoint("meta-llama/"))
    with pytest.raises(ModelError, match="loaded without its LM head"):
        check_writes(Backbone(encoder, 0))
    t5 = tf.AutoModelForSeq2SeqLM.from_pretrained(checkpoint("google-t5/"))
    with pytest.raises(ModelError, match="need a decoder-only language model, not T5"):
        check_writes(Backbone(t5.base_model, 0, lm=t5))
