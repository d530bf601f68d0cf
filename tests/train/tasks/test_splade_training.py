"""Training of vocabulary weights against transformers' logits and sentence-transformers' SPLADE."""

import pytest
import torch
import transformers as tf
from checkpoints import checkpoint
from sentence_transformers.sparse_encoder import losses as st
from sentence_transformers.sparse_encoder.modules import SpladePooling
from test_language import loss_of
from torch.nn.utils.rnn import pad_sequence

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings
from polyvec.train.settings import StageSettings
from polyvec.train.tasks.contrastive import contrastive

ROWS = [
    TrainingRow("a cat", ("the cat sat on the mat",)),
    TrainingRow("nobody looks", ("a dog looks on the very long text of two",)),
    TrainingRow("query: vector", ("the dog",)),
]
QUERY, DOCUMENT = 0.7, 0.3  # weights of sparsity


def reference(embedder, lm, texts):
    """Value by sentence-transformers' pooling and losses; gradients are left in `lm`.

    The mask that pooling sees is of the tokens that an embedder pools: of the second copy of a
    repeated text, and never the first token.
    """
    reads = [
        embedder.text_tokenizer.encode(embedder.rendered_inputs([text], embedder.prompt_for())[0])
        for text in texts
    ]
    inputs = [tokens for (tokens,) in reads]
    ids = pad_sequence([torch.from_numpy(each.ids).long() for each in inputs], True)
    there = pad_sequence([torch.ones(len(each)).long() for each in inputs], True)
    pooled = pad_sequence([torch.from_numpy(each.pooled).long() for each in inputs], True)
    pooled[:, 0] = 0
    logits = lm(input_ids=ids, attention_mask=there).logits
    features = {"token_embeddings": logits, "attention_mask": pooled}
    vectors = SpladePooling("max").train()(features)["sentence_embedding"]
    loss = st.SpladeLoss(
        None,
        st.SparseMultipleNegativesRankingLoss(None),
        document_regularizer_weight=DOCUMENT,
        query_regularizer_weight=QUERY,
    )
    sides = list(vectors.split(len(ROWS)))
    value = loss.loss.compute_loss_from_embeddings(sides, None)
    value = value + DOCUMENT * loss.document_regularizer.compute_loss_from_embeddings(sides[1])
    value = value + QUERY * loss.query_regularizer.compute_loss_from_embeddings(sides[0])
    value.backward()
    return float(value.detach()), vectors.detach()


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("template", [None, "echo_rewrite"])
def test_loss_and_gradients_are_those_of_sentence_transformers(template, cached):
    folder = str(checkpoint("meta-llama/"))
    settings = {"over": "max", "skip_first": True}
    embedder = compose(
        EmbedderSettings(
            folder,
            template=template,
            pooling="lexical",
            pooling_settings=settings,
            similarity="dot",
        )
    )
    lm = tf.AutoModelForCausalLM.from_pretrained(folder)
    texts = [row.query for row in ROWS] + [row.positives[0] for row in ROWS]
    value, vectors = reference(embedder, lm, texts)
    found = torch.stack([torch.as_tensor(each).to_dense() for each in embedder.encode(texts)])
    torch.testing.assert_close(found.detach(), vectors, rtol=1e-4, atol=1e-6)
    assert 0.05 < float((vectors > 0).float().mean()) < 0.95

    losses = (
        {"kind": "info_nce", "temperature": 1.0, "similarity": "dot"},
        {"kind": "flops", "query_weight": QUERY, "document_weight": DOCUMENT},
    )
    stage = StageSettings("scl", losses=losses, gradient_cache=24 if cached else 0)
    task = contrastive(embedder, stage)
    assert loss_of(embedder, task, ROWS, cached=cached) == pytest.approx(value, rel=1e-5)
    compared = 0
    own = dict(embedder.backbone.model.named_parameters())
    for name, other in lm.named_parameters():
        weight = own.get(name.removeprefix("model."), embedder.backbone.lm_head.weight)
        scale = float(other.grad.abs().max())
        assert scale > 1e-6, name
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-3, atol=1e-5 * scale, msg=name)
        compared += 1
    assert compared > 50
