"""A text's vector depends on nothing but the text: over families, poolings and layouts."""

import functools

import numpy as np
import pytest
import torch
from families import FAMILIES, build, tokenizer
from numpy.testing import assert_allclose
from transformers import AttentionInterface

from polyvec import Embedder
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.pooling.functions import POOLINGS

TEXTS = [
    "a cat",
    "the dog sat on the mat while nobody looks",
    "",
    "a very long text of two cats " * 20,
    "mat",
    "query: vector </s> {text} [SEP]",
    "a cat",
]
ALL = tuple(POOLINGS)


@functools.cache
def embedder(name: str, layout: str = "auto", pooling=ALL) -> Embedder:
    return Embedder.from_parts(
        Backbone(build(name), 0, layout=layout),
        TextTokenizer(tokenizer(), max_length=48),
        pooling=pooling,
    )


@pytest.fixture(params=FAMILIES)
def name(request) -> str:
    return request.param


def test_alone_batch_order_and_batch_size_give_the_same_vectors(name):
    model = embedder(name)
    together = model.encode(TEXTS)
    scale = np.abs(together).max()
    alone = np.stack([model.encode(text) for text in TEXTS])
    assert_allclose(together, alone, atol=1e-5 * scale)
    assert_allclose(model.encode(TEXTS[::-1])[::-1], together, atol=1e-5 * scale)
    assert_allclose(model.encode(TEXTS, batch_size=2), together, atol=1e-5 * scale)


def test_packed_equals_padded(name):
    model = embedder(name)
    expected = "packed" if FAMILIES[name][1] else "padded"
    assert model.backbone.layout == expected, model.backbone.layout_reason
    padded = embedder(name, layout="padded").encode(TEXTS)
    assert_allclose(model.encode(TEXTS), padded, atol=1e-5 * np.abs(padded).max())


def test_the_vector_is_the_familys_own(name):
    """Against the plain forward of transformers on one text, mean pooled by hand."""
    model = embedder(name, pooling="mean")
    ids = model.tokenizer("a cat sat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = build(name)(input_ids=ids).last_hidden_state
    assert_allclose(
        model.encode("a cat sat"), states[0].mean(dim=0), atol=1e-5 * states.abs().max()
    )


def test_gradients_of_packed_and_padded_are_equal():
    from polyvec.embed.inputs.tokens import TokenBatch

    grads = []
    for layout in ("packed", "padded"):
        model = embedder("bert", layout=layout, pooling="mean")
        tokens = model.text_tokenizer.encode([_span(text) for text in TEXTS[:3]])
        model(TokenBatch.of(range(3), tokens)).pow(2).sum().backward()
        grads.append(model.backbone.model.get_input_embeddings().weight.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


def _span(text):
    from polyvec.embed.inputs.spans import Span

    return (Span(text),)


def test_a_family_that_cannot_be_packed_says_why():
    assert "differs" in embedder("t5_encoder").backbone.layout_reason


def test_packed_on_demand_is_refused_where_it_would_be_wrong():
    from polyvec.errors import ModelError

    with pytest.raises(ModelError, match="cannot run packed"):
        Backbone(build("mpnet"), 0, layout="packed")


def test_the_probe_notices_a_packed_attention_that_lets_texts_see_each_other(monkeypatch):
    """Plant SILENT row 3: one run over all tokens instead of one per text."""
    from polyvec.embed.backbone import attention

    honest = attention.plan_attention

    def leaky(module, query, key, value, mask, plan=None, **options):
        everything = attention.AttentionPlan(plan.modes, runs=((1, query.shape[2]),))
        return honest(module, query, key, value, mask, plan=everything, **options)

    AttentionInterface.register(attention.NAME, leaky)
    try:
        backbone = Backbone(build("bert"), 0)
    finally:
        AttentionInterface.register(attention.NAME, honest)
    assert backbone.layout == "padded"
    assert "differs" in backbone.layout_reason
