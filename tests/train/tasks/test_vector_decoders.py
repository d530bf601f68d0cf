"""Stages whose decoder makes a text from one vector: what it reads, what it takes from there."""

import numpy as np
import pytest
import torch
from test_language import Worker
from test_multi_task import embedder, worked
from torch.nn import functional as F

from polyvec.data.training.rows import TrainingRow
from polyvec.errors import DataError, SettingsError
from polyvec.train.adapters import check_gradients, prepare
from polyvec.train.engine import step
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks import TASKS
from polyvec.train.tasks.bottleneck import Bottleneck
from polyvec.train.tasks.denoising import DenoSent

ROWS = [
    TrainingRow("the cat sat", ("the cat sat on the mat",)),
    TrainingRow("a dog looks", ("nobody looks on the dog",)),
    TrainingRow("a passage", ("very long text of two",)),
]
SMALL = {"num_layers": 2, "num_heads": 2}


def built(kind, model=None, stage=None, **settings):
    model = model or embedder()
    facts = {"embedder": model, "stage": stage or StageSettings(kind)}
    return model, TASKS.build(kind, {**SMALL, **settings}, facts, where="[[stage]]")


def losses(kind, rows=ROWS, steps=30, learning_rate=3e-3, **settings):
    """The task after some steps on one batch, and the terms of its loss at each."""
    torch.manual_seed(0)
    model, task = built(kind, **settings)
    prepare(model, {"kind": "full"}, head=True)
    worker = Worker(model, task)
    model.train()
    task.heads.train()
    trained = [*model.parameters(), *task.heads.parameters()]
    trained = list({id(p): p for p in trained if p.requires_grad}.values())
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    found = []
    for number in range(steps):
        task.batch_number = number
        optimizer.zero_grad()
        work = task.work(rows, [Share(0, len(rows))], 0)
        terms = step(
            worker,
            work.pieces,
            lambda results, facts=work.facts: task.loss(results, facts),
            cached=False,
            collect=work.ordered,
        )
        if not number:
            check_gradients(model)
        found.append({name: float(each) for name, each in terms.items()})
        optimizer.step()
    return model, task, found


def test_the_decoder_restores_the_positive_as_the_encoder_reads_it():
    """All its tokens, by PyTorch's own cross-entropy of the decoder's logits."""
    model, task = built("denosent", noise=0.0, dropout=0.0)
    results, facts = worked(model, task, ROWS)
    assert [each.ids.tolist() for each in facts.restored] == [
        read.inputs[0].ids.tolist()
        for read in task._read(ROWS, [row.positives for row in ROWS])[len(ROWS) :]
    ]
    vectors_BE = task.compared(results, facts).query_BE
    found = task.restored(vectors_BE, facts.restored)
    sums, count = 0.0, 0
    for row, text in enumerate(facts.restored):
        ids = torch.from_numpy(text.ids.astype(np.int64))
        states = model.backbone.model.get_input_embeddings()(ids)
        states = states + task.decoder.positions.weight[: len(ids)]
        out = task.decoder.layers(states[None], vectors_BE[row][None, None])[0]
        sums += F.cross_entropy(model.backbone.logits(out), ids, reduction="sum").item()
        count += len(ids)
    assert found.item() == pytest.approx(sums / count, rel=1e-4)


@pytest.mark.medium
def test_without_a_word_left_the_vector_alone_restores_the_text():
    """Noise of 1: the decoder beats the best guess that knows only how frequent tokens are."""
    model, task, found = losses(
        "denosent", noise=1.0, dropout=0.0, steps=60, num_layers=1, learning_rate=5e-3
    )
    results, facts = worked(model, task, ROWS)
    ids = np.concatenate([each.ids for each in facts.restored])
    share = np.unique(ids, return_counts=True)[1] / len(ids)
    unigrams = float(-(share * np.log(share)).sum())
    assert found[-1]["restored"] < 0.8 * unigrams < found[0]["restored"]
    vectors_BE = task.compared(results, facts).query_BE
    own, other = (
        float(task.restored(each, facts.restored)) for each in (vectors_BE, vectors_BE.roll(1, 0))
    )
    assert own < 0.8 * other


@pytest.mark.medium
def test_a_query_is_written_from_its_documents_vector():
    """After training, its own vector makes a query likelier than another document's does."""
    model, task, found = losses("bottleneck", dropout=0.0, steps=40)
    assert found[-1]["written"] < 0.3 * found[0]["written"]
    assert found[-1]["masked"] < found[0]["masked"]
    task.heads.eval()
    results, facts = worked(model.eval(), task, ROWS)
    own = float(task.decoder(results["encode"], facts))
    other = float(task.decoder(results["encode"].roll(1, 0), facts))
    assert own < 0.8 * other


def test_the_writer_sees_no_later_token_and_no_padding():
    model, task = built("bottleneck", dropout=0.0, weight=0.0)
    results, facts = worked(model, task, ROWS)
    vectors = results["encode"]
    each = [
        (float(task.decoder(vectors[i : i + 1], facts[i : i + 1])), len(facts[i]))
        for i in range(len(ROWS))
    ]
    mean = sum(loss * length for loss, length in each) / sum(length for _, length in each)
    assert float(task.decoder(vectors, facts)) == pytest.approx(mean, rel=1e-4)
    _, _, states = task.decoder.inputs(facts[:1])
    longer = torch.cat([vectors[:1, None], states], 1)
    mask = torch.ones(longer.shape[1], longer.shape[1], dtype=torch.bool).triu(1)
    changed = longer.clone()
    changed[:, -1] = 9.0
    before, after = (task.decoder.layers(x, mask=mask)[:, :-1] for x in (longer, changed))
    torch.testing.assert_close(before, after)


def test_only_the_document_is_encoded_and_only_the_query_written():
    _, task = built("bottleneck", weight=0.0)
    work = task.work(ROWS, [Share(0, 3)], 0)
    assert work.num_texts == 3 and set(work.order) == {"encode"}
    words = task.tokenizer.hf
    assert [words.decode(each.ids, skip_special_tokens=True) for each in work.facts] == [
        row.query for row in ROWS
    ]
    with pytest.raises(DataError, match="no positive"):
        task.work([TrainingRow("alone")], [Share(0, 1)], 0)


@pytest.mark.parametrize(
    ("kind", "settings", "stage", "says"),
    [
        ("denosent", {"weight": 0.0}, {}, "weight"),
        ("denosent", {"noise": 1.5}, {}, "noise"),
        ("denosent", {"num_heads": 7}, {}, "num_heads"),
        ("denosent", {"dropout": 1.0}, {}, "dropout"),
        ("bottleneck", {"dropout": -0.1}, {}, "dropout"),
        ("bottleneck", {"weight": -1.0}, {}, "weight"),
        ("bottleneck", {"num_layers": 0}, {}, "num_layers"),
        ("bottleneck", {}, {"losses": ({"kind": "info_nce"},)}, "losses would do nothing"),
    ],
)
def test_settings_that_cannot_be(kind, settings, stage, says):
    with pytest.raises(SettingsError, match=says):
        built(kind, stage=StageSettings(kind, **stage), **settings)


def test_both_are_classes_of_the_table():
    assert isinstance(built("denosent")[1], DenoSent)
    assert isinstance(built("bottleneck")[1], Bottleneck)
