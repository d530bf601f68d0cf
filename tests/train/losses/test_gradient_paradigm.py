"""The loss that is given by its gradient, beside the losses that it generalises."""

import math

import pytest
import torch
from given_vectors import batch_of, columns

from polyvec.errors import SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.gradients import gradient_paradigm
from polyvec.train.losses.info_nce import info_nce

MARGIN = {"dissipation": "margin", "weight": "hardest"}


def gradients(loss, vectors):
    leaves = [each.clone().requires_grad_() for each in vectors]
    loss(batch_of(leaves)).backward()
    return [each.grad for each in leaves]


def hinge(batch, margin):
    """Triplets with the hardest negative, as the paper's MPT."""
    scores = torch.cosine_similarity(batch.query_BE[:, None], batch.document_NE[None], dim=-1)
    places = torch.arange(len(scores))
    others = scores.masked_fill(batch.own_positives, -math.inf)
    return (margin - scores[places, places] + others.amax(dim=1)).relu().mean()


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_softmaxs_gradient_is_that_of_info_nce(temperature):
    vectors = columns(5, 5, 5)
    found = gradients(lambda batch: gradient_paradigm(batch, temperature=temperature), vectors)
    wanted = gradients(lambda batch: info_nce(batch, temperature=temperature), vectors)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("margin", [0.1, 0.8])
def test_the_margins_gradient_is_that_of_hard_triplets(margin):
    vectors = columns(5, 5, seed=3)
    found = gradients(lambda batch: gradient_paradigm(batch, margin=margin, **MARGIN), vectors)
    wanted = gradients(lambda batch: hinge(batch, margin), vectors)
    assert 0 < sum(bool(each.any()) for each in wanted[0]) <= 5
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_ratio_by_hand():
    """Query (1, 0), positive (1, 0), negative (0, 1): G is 1 / (1 + e), W is 1."""
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    document = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    batch = Compared(query, document, torch.tensor([0, 0]), torch.tensor([True, False]))
    gradient_paradigm(batch, temperature=1.0, ratio=0.25, similarity="dot").backward()
    share = 1 / (1 + math.e)
    torch.testing.assert_close(query.grad, share * torch.tensor([[-0.25, 1.0]]))


def test_a_row_alone_and_settings_without_effect():
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    for settings in ({}, {"margin": 0.1, **MARGIN}):
        gradient_paradigm(Compared.pairs(query, torch.ones(1, 2)), **settings).backward()
        assert query.grad.tolist() == [[0.0, 0.0]]
    for settings, says in (({"margin": 0.1}, "reads no margin"), (MARGIN, "needs a margin")):
        with pytest.raises(SettingsError, match=says):
            gradient_paradigm(Compared.pairs(query, query), **settings)
