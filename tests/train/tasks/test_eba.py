"""Llama2Vec's two suffixes on one input: who sees whom, and what is lost by hand."""

import copy

import numpy as np
import pytest
import torch
import transformers as tf
from checkpoints import checkpoint
from test_language import loss_of

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import ModelError, SettingsError
from polyvec.train import language_head
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks.eba import (
    ATTENTION,
    JOB,
    NEXT,
    SAME,
    EmbeddingBased,
    _payload,
    parallel_positions,
)

ROWS = [
    TrainingRow("the cat sat on the mat", positives=("nobody looks",)),
    TrainingRow("a dog", positives=("very long text of two",)),
    TrainingRow("query text", positives=("vector",)),
]


def embedder(backbone="meta-llama/", template="llama2vec", **more):
    return compose(EmbedderSettings(str(checkpoint(backbone)), template=template, **more))


def task_of(model, **settings):
    stage = StageSettings("eba", gradient_cache=settings.pop("budget", 0))
    return EmbeddingBased(model, stage, **settings)


def slots(model, task, row, segment, change=None):
    """States of one suffix's slots; `change` replaces tokens of some segment first."""
    payload = _payload([task.example(row)])
    batch = payload.batch
    if change is not None:
        batch.ids_T[batch.segments_T == change] = 7
    with torch.no_grad():
        states = model.backbone(batch, attention=ATTENTION).last_BTD[0]
    return states[torch.from_numpy(batch.pooled_T & (batch.segments_T == segment))]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("backbone", ["meta-llama/", "mistralai/", "openai-community/gpt2"])
def test_each_suffix_reads_the_passage_as_it_does_alone(backbone, layout):
    """Vectors of the plain templates, which have one suffix each, are those of the slots."""
    model = embedder(backbone)
    task = task_of(model)
    model.backbone.runner.packed = layout == "packed"
    texts = [row.query for row in ROWS]
    for segment, wanted in (
        (SAME, model.encode_document(texts)),
        (NEXT, model.encode_query(texts)),
    ):
        found = [slots(model, task, row, segment) for row in ROWS]
        assert all(len(each) == 8 for each in found)
        means = torch.stack([each.mean(0) for each in found])
        np.testing.assert_allclose(means.numpy(), wanted, atol=2e-5)


def test_a_suffix_is_blind_to_the_other_and_sees_the_passage():
    model = embedder()
    task = task_of(model)
    for segment, other in ((SAME, NEXT), (NEXT, SAME)):
        plain = slots(model, task, ROWS[0], segment)
        torch.testing.assert_close(slots(model, task, ROWS[0], segment, other), plain)
        assert not torch.allclose(slots(model, task, ROWS[0], segment, 0), plain)


def test_without_the_mask_the_second_suffix_would_see_the_first():
    model = embedder()
    task = task_of(model)
    batch = _payload([task.example(ROWS[0])]).batch
    blind = slots(model, task, ROWS[0], NEXT)
    with torch.no_grad():
        states = model.backbone(batch, attention=AttentionSpec("causal")).last_BTD[0]
    seeing = states[torch.from_numpy(batch.pooled_T & (batch.segments_T == NEXT))]
    assert not torch.allclose(seeing, blind, atol=1e-3)


def test_positions_by_hand():
    segments = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    assert parallel_positions(segments).tolist() == [0, 1, 2, 3, 4, 5, 3, 4]


def test_loss_by_hand_from_transformers_own_states():
    """Bags by the plain templates' slots, the passage's tokens by the causal model."""
    model = embedder()
    task = task_of(model, weight=0.1, remove_stop_words=False)
    terms = task.loss(
        {JOB: torch.cat([task.jobs[JOB](model, p.payload) for p in pieces(task)])},
        torch.tensor([True] * 3),
    )
    lm = model.backbone.lm
    config = copy.deepcopy(lm.config)
    config._attn_implementation = "eager"
    body = tf.LlamaModel(config).eval()
    body.load_state_dict(model.backbone.model.state_dict())
    bags = {"ebae": [], "ebar": []}
    sums, count = 0.0, 0
    for row in ROWS:
        for name, role, target in (
            ("ebae", "document", row.query),
            ("ebar", "query", row.positives[0]),
        ):
            (spans,) = model.rendered_inputs([row.query], model.prompt_for(role=role))[0]
            (tokens,) = model.text_tokenizer.encode([spans], text_mask=True)
            ids = torch.from_numpy(tokens.ids).long()
            logits = lm.lm_head(body(input_ids=ids[None]).last_hidden_state[0])
            bag = set(model.tokenizer(target, add_special_tokens=False).input_ids)
            best = logits[torch.from_numpy(tokens.pooled)][-8:].max(0).values.log_softmax(0)
            bags[name].append(-float(best[sorted(bag)].mean()))
            if name == "ebae":
                where = torch.from_numpy(np.flatnonzero(tokens.text))
                sums -= float(logits.log_softmax(-1)[where - 1, ids[where]].sum())
                count += len(where)
    assert float(terms["ar"]) == pytest.approx(sums / count, rel=1e-5)
    for name, values in bags.items():
        assert float(terms[name]) == pytest.approx(0.05 * np.mean(values), rel=1e-5)


def pieces(task):
    return task.work(ROWS, [Share(0, 3)], 0).pieces


def test_bags_leave_out_stop_words_repeats_and_special_tokens():
    model = embedder()
    words = model.tokenizer.convert_ids_to_tokens
    assert set(words(task_of(model).bag("The cat, the cat sat on a mat."))) == {"cat", "sat", "mat"}
    kept = task_of(model, remove_stop_words=False).bag("the cat, the cat </s>")
    assert {"the", "cat", ","} <= set(words(kept)) and "</s>" not in words(kept)


def test_rows_without_a_next_passage_have_the_first_loss_only():
    model = embedder()
    task = task_of(model)
    rows = [TrainingRow(row.query) for row in ROWS]
    work = task.work(rows, [Share(0, 3)], 0)
    found = torch.cat([task.jobs[JOB](model, piece.payload) for piece in work.pieces])
    terms = task.loss({JOB: found}, work.facts)
    assert set(terms) == {"ar", "ebae"}
    assert float(terms["ebae"]) == pytest.approx(0.1 * float(found[:, 2].mean()))


def test_cache_and_processes_change_nothing(monkeypatch):
    monkeypatch.setattr(language_head, "NUM_LOGITS", 200)
    found = []
    for budget, shares, cached in ((0, 1, False), (60, 1, True), (0, 3, True)):
        model = embedder()
        loss = loss_of(model, task_of(model, budget=budget), ROWS, shares, cached)
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss, grads))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][name], rtol=1e-4, atol=1e-6)


def test_what_it_cannot_run_on_is_an_error():
    with pytest.raises(SettingsError, match=r"has no '<s1>'; set \[embedder\] template"):
        task_of(compose(EmbedderSettings(str(checkpoint("meta-llama/")))))
    with pytest.raises(ModelError, match="BloomModel takes no masks between segments"):
        task_of(embedder("bigscience/bloom"))
