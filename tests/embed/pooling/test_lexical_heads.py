"""Vocabulary weights take the whole head of a masked model, of every family that has one."""

import numpy as np
import pytest
import torch
import transformers as tf
from families import ENCODER_SIZES, VOCAB, tokenizer
from numpy.testing import assert_allclose
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from polyvec import Embedder
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.pooling.lexical import Lexical

SIZES = {"vocab_size": VOCAB, **ENCODER_SIZES}
FLAUBERT = {"vocab_size": VOCAB, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "pad_index": 0}
OTHERWISE = {
    "albert": SIZES | {"embedding_size": 16},
    "big_bird": SIZES | {"attention_type": "original_full"},
    "convbert": SIZES | {"embedding_size": 32, "conv_kernel_size": 3},
    "distilbert": {"vocab_size": VOCAB, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "electra": SIZES | {"embedding_size": 16},
    "flaubert": FLAUBERT,
    "funnel": {
        "vocab_size": VOCAB,
        "block_sizes": [1, 1],
        "num_decoder_layers": 1,
        "d_model": 32,
        "n_head": 4,
        "d_head": 8,
        "d_inner": 48,
    },
    "longformer": SIZES | {"attention_window": [8, 8]},
    "mobilebert": SIZES
    | {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "squeezebert": SIZES | {"embedding_size": 32},
    "xlm": FLAUBERT,
    "xmod": SIZES | {"languages": ["en_XX"], "default_language": "en_XX"},
}
# Encoder-decoders have no logits over the text itself; the others are no models of bare texts.
LEFT_OUT = {"bart", "mbart", "mvp", "perceiver", "reformer", "neomme", "ultrabert", "ultravbert"}
FAMILIES = sorted(set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) - LEFT_OUT)
# Of those that SPLADE models are made of, the whole way from text to vector.
SPLADE = ("bert", "distilbert", "roberta", "xlm-roberta", "modernbert", "mpnet", "deberta-v2")
TEXTS = ["a cat", "the dog sat on the mat while nobody looks", "query: vector"]


def masked(family: str) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    config = tf.AutoConfig.for_model(family, **OTHERWISE.get(family, SIZES))
    model = tf.AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    return model


def backbone(lm: tf.PreTrainedModel) -> Backbone:
    return Backbone(lm.base_model, 0, lm=lm, layout="padded")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model_itself(family):
    lm = masked(family)
    ids = torch.randint(5, VOCAB, (2, 16))
    with torch.no_grad():
        expected = lm(input_ids=ids).logits
        states = lm.base_model(input_ids=ids)[0]
        found = Backbone.logits(_headed(lm), states)
        flat = Backbone.logits(_headed(lm), states[1, 3:7])
    scale = float(expected.abs().max())
    assert_allclose(found, expected, atol=1e-6 * scale)
    assert_allclose(flat, expected[1, 3:7], atol=1e-5 * scale)


def _headed(lm: tf.PreTrainedModel) -> Backbone:
    """A backbone without the probes, which not every family of the table passes."""
    made = Backbone.__new__(Backbone)
    torch.nn.Module.__init__(made)
    made.model, made.lm_head = lm.base_model, torch.nn.Identity()
    object.__setattr__(made, "lm", lm)
    return made


@pytest.mark.parametrize("over", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("family", SPLADE)
def test_vectors_by_hand(family, activation, over):
    lm, words = masked(family), tokenizer()
    pooling = Lexical(VOCAB, over, skip_first=False, activation=activation)
    embedder = Embedder.from_parts(
        backbone(lm), TextTokenizer(words, max_length=48), pooling=pooling
    )
    for text, found in zip(TEXTS, embedder.encode(TEXTS), strict=True):
        with torch.no_grad():
            logits = lm(input_ids=words(text, return_tensors="pt")["input_ids"]).logits[0]
        weights = np.log1p(np.maximum(logits.double().numpy(), 0))
        weights = np.log1p(weights) if activation == "log1p_relu" else weights
        expected = weights.max(0) if over == "max" else weights.sum(0)
        assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_whole_head_decides_the_fingerprint_and_moves_with_the_model():
    lm = masked("bert")
    pooling = Lexical(VOCAB, "max", skip_first=False)
    embedder = Embedder.from_parts(backbone(lm), TextTokenizer(tokenizer()), pooling=pooling)
    before = embedder.fingerprint()
    with torch.no_grad():
        lm.cls.predictions.transform.dense.weight[0, 0] += 1
        lm.cls.predictions.transform.dense.weight.mul_(1.5)
    assert embedder.fingerprint() != before
    embedder.to(torch.bfloat16)
    assert lm.cls.predictions.transform.dense.weight.dtype == torch.bfloat16
