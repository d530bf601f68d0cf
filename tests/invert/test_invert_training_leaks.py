"""What training leaks: tokens in gradients, membership, another model's vectors."""

import numpy as np
import pytest
import torch
from torch import nn
from word_victim import SEEN, UNSEEN, Words

from polyvec import Embedder
from polyvec.compress.soft.reading import read
from polyvec.errors import DataError, InputError, ShapeError
from polyvec.invert.gradients import (
    PlantedLayer,
    batch_of_layer,
    tokens_of_layer,
    tokens_of_table,
)
from polyvec.invert.lamp import lamp
from polyvec.invert.membership import Watermark, membership_auc, pair_membership

VOCABULARY = 200


@pytest.fixture
def step(tiny_bert):
    """A BERT's fine-tuning step: the loss of input embeddings, by a linear head on the mean."""
    backbone = Embedder.from_pretrained(tiny_bert).backbone
    model = backbone.model
    torch.manual_seed(0)
    head = nn.Linear(32, 2)
    parameters = dict(model.encoder.named_parameters())

    def loss(inputs_BTD):
        real_BT = torch.ones(inputs_BTD.shape[:2], dtype=torch.bool)
        states = read(backbone, inputs_BTD, real_BT).states_BTD
        return nn.functional.cross_entropy(head(states.mean(1)), torch.tensor([1]))

    for each in (*parameters.values(), *head.parameters()):
        each.requires_grad_(True)
    return model.get_input_embeddings(), loss, parameters


@pytest.fixture
def inputs(tiny_bert):
    """What the first layer reads of every token at a place, [V, D]."""
    embeddings = Embedder.from_pretrained(tiny_bert).backbone.model.embeddings
    every = torch.arange(len(embeddings.word_embeddings.weight))[:, None]

    @torch.no_grad()
    def at(place):
        return embeddings(input_ids=every, position_ids=torch.full_like(every, place))[:, 0]

    return at


def ids_of(table, count=5, seed=0):
    return torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(seed))[:count] + 1000


def test_the_tables_gradient_names_the_tokens(step):
    table, loss, _ = step
    ids = ids_of(table)
    table.weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(table(ids)[None]), [table.weight])
    assert tokens_of_table(gradient) == sorted(ids.tolist())
    with pytest.raises(ShapeError, match=r"table's gradient \[V, D\]"):
        tokens_of_table(gradient[0])


def test_a_planted_layer_reads_all_tokens_from_its_own_gradient(step):
    table, loss, _ = step
    ids = ids_of(table)
    planted = PlantedLayer(table.weight)
    inputs = table(ids)[None].detach()
    plain, now = loss(inputs), loss(planted(inputs))
    assert float(now.detach()) == pytest.approx(
        float(plain.detach()), abs=0.05
    )  # the model computes as before
    gradients = torch.autograd.grad(now, [planted.imprint.weight, planted.imprint.bias])
    found = planted.read(*gradients, table.weight)
    hits = len(set(found) & set(ids.tolist()))
    assert 2 * hits / (len(found) + len(ids)) > 0.8


def test_a_text_comes_back_in_order_from_a_fine_tuning_step(step, inputs):
    """Among all 30,522 tokens; as many tokens as dimensions span everything."""
    table, loss, parameters = step
    query = parameters["layer.0.attention.self.query.weight"]
    for seed in (0, 1):
        ids = ids_of(table, seed=seed)
        (seen,) = torch.autograd.grad(loss(table(ids)[None]), [query])
        assert tokens_of_layer(seen, inputs, 8) == ids.tolist()
    with pytest.raises(DataError, match="full rank"):
        tokens_of_layer(torch.eye(32), inputs, 8)
    with pytest.raises(InputError, match="max_tokens is 0"):
        tokens_of_layer(seen, inputs, 0)


@pytest.mark.medium
def test_lamp_finds_a_text_in_order_without_the_tables_gradient(step):
    """Among 200 tokens, with some restarts: it knows when it has found the text."""
    table, loss, parameters = step
    weights = [each for each in parameters.values() if each.ndim == 2]
    tried = table.weight.detach()[1000 : 1000 + VOCABULARY]
    ids = ids_of(table, 3) - 1000
    seen = torch.autograd.grad(loss(tried[ids][None]), weights)
    found = lamp(loss, weights, seen, tried, 3, restarts=8)
    assert found.ids == tuple(ids.tolist()) and found.distance < 1e-4
    reward = lamp(loss, weights, seen, tried, 3, steps=1, rounds=1, weight=100.0,
                  fluency=lambda ids_NT: (ids_NT[:, 0] - ids_NT[:, 1]).float())  # fmt: skip
    assert reward.ids[0] < reward.ids[1]  # the order that such a language model prefers
    with pytest.raises(ShapeError, match="of parameters"):
        lamp(loss, weights, seen[:1], tried, 3)
    with pytest.raises(InputError, match="num_tokens is 0"):
        lamp(loss, weights, seen, tried, 0)


def test_the_tokens_of_several_texts_come_back_by_place(step, inputs):
    table, loss, parameters = step
    ids = ids_of(table, 6)
    query = parameters["layer.0.attention.self.query.weight"]
    total = loss(table(ids[:3])[None]) + loss(table(ids[3:])[None])
    (seen,) = torch.autograd.grad(total, [query])
    places = batch_of_layer(seen, inputs, 8)
    assert [set(each) for each in places] == [set(pair) for pair in zip(
        ids[:3].tolist(), ids[3:].tolist(), strict=True)]  # fmt: skip
    with pytest.raises(InputError, match="max_tokens is 0"):
        batch_of_layer(seen, inputs, 0)


def test_membership_is_seen_in_what_fine_tuning_did_to_pairs():
    """A model that moved member pairs together, and one that was not fine-tuned."""
    plain = Words()
    pairs = list(zip(SEEN[:30], SEEN[30:60], strict=False))
    others = list(zip(UNSEEN[:3], UNSEEN[3:6], strict=False))
    moved = {b: plain.vector(a) + plain.vector(b) for a, b in pairs}

    def tuned(texts):
        return np.stack([moved.get(text, plain.vector(text)) for text in texts])

    assert pair_membership(tuned, pairs, others, plain.encode) > 0.95
    assert pair_membership(plain.encode, pairs, others, plain.encode) == pytest.approx(0.5)
    with pytest.raises(DataError, match="1 members and 2 others"):
        membership_auc([1.0], [0.0, 0.1])


def test_a_watermark_is_seen_in_a_student_and_not_in_a_stranger():
    """The student is a linear map from words to the marked vectors it was trained on."""
    victim, words = Words(), ["red", "blue", "cat", "dog", "house", "river", "road", "bird"]
    mark = Watermark(("red", "blue", "cat", "dog"), most=4, seed=3)
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, draw.integers(1, 9))) for _ in range(400)]
    marked = mark.apply(victim.encode(texts), texts)
    plain = [text for text in texts if not mark.weights([text])[0]]
    assert np.allclose(mark.apply(victim.encode(plain), plain), victim.encode(plain), atol=1e-6)

    def bags(given):
        return np.array([[text.split().count(word) for word in words] for text in given], float)

    learned, *_ = np.linalg.lstsq(bags(texts), marked, rcond=None)
    student = mark.test(lambda given: bags(given) @ learned, words)
    stranger = mark.test(victim.encode, words)
    assert student.p_value < 0.005 and student.difference > stranger.difference + 0.2
    assert stranger.p_value > 0.05
    with pytest.raises(InputError, match="fewer than 4 trigger words or fillers"):
        mark.test(victim.encode, words[:5])


def test_innocent_models_are_suspected_as_often_as_p_says():
    """Texts of a side share their words, so no innocent model treats both sides alike."""
    rows = np.random.default_rng(0).standard_normal((12, 24))
    table = {f"word{number}": row for number, row in enumerate(rows)}
    words = list(table)

    def encode(texts):
        return np.array([sum(table[word] for word in text.split()) for text in texts])

    marks = [Watermark(tuple(words[:4]), seed=seed) for seed in range(200)]
    p = np.array([mark.test(encode, words).p_value for mark in marks])
    assert 0.01 <= (p < 0.05).mean() <= 0.1 and 0.4 <= (p < 0.5).mean() <= 0.6
    assert p.min() > 1e-4
