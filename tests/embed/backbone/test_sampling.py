"""What a backbone writes, against transformers' generate, and what is refused."""

import pytest
import torch
import transformers as tf
from checkpoints import checkpoint

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.decoding import Request
from polyvec.embed.backbone.drawing import Drawing
from polyvec.embed.backbone.sampling import check_writes, writer
from polyvec.errors import ModelError

IDS = (7, 9, 20, 11)
FAMILIES = ["meta-llama/", "EleutherAI/pythia", "bigscience/bloom"]


def load(family: str, **options) -> Backbone:
    lm = tf.AutoModelForCausalLM.from_pretrained(checkpoint(family)).eval()
    return Backbone(lm.base_model, 0, lm=lm, **options)


def written(backbone: Backbone, drawing: Drawing = Drawing(), stop=None) -> list[int]:  # noqa: B008
    (found,) = writer(backbone).decode([Request(IDS, 12, drawing, stop)])
    return found.new_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likeliest_tokens_are_those_of_transformers(family):
    """Drawn ones have transformers' nuclei and frequencies (test_drawing.py)."""
    plain = tf.AutoModelForCausalLM.from_pretrained(checkpoint(family)).eval()
    ids = torch.tensor([IDS])
    mask = torch.ones_like(ids)
    out = plain.generate(
        ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    expected = [int(token) for token in out[0, len(IDS) :]]
    ends = plain.generation_config.eos_token_id
    assert written(load(family)) == expected[: [*expected, ends].index(ends)]


def test_a_bidirectional_embedder_writes_causally():
    causal, both = load("meta-llama/"), load("meta-llama/", attention="bidirectional")
    for seed in range(3):
        drawing = Drawing(0.7, seed=seed)
        assert written(both, drawing) == written(causal, drawing)


def test_stop_ends_the_text_and_changes_nothing_before():
    backbone = load("meta-llama/")
    drawings = [Drawing(0.7, seed=seed) for seed in range(10)]
    longer = [
        (drawing, whole) for drawing in drawings if len(whole := written(backbone, drawing)) > 4
    ]
    assert longer
    for drawing, whole in longer:
        assert written(backbone, drawing, stop=lambda tokens: len(tokens) == 4) == whole[:4]


def test_models_that_cannot_write_are_refused():
    encoder = tf.AutoModel.from_pretrained(checkpoint("meta-llama/"))
    with pytest.raises(ModelError, match="loaded without its LM head"):
        check_writes(Backbone(encoder, 0))
    t5 = tf.AutoModelForSeq2SeqLM.from_pretrained(checkpoint("google-t5/"))
    with pytest.raises(ModelError, match="need a decoder-only language model, not T5"):
        check_writes(Backbone(t5.base_model, 0, lm=t5))
