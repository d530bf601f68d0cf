"""Losses of pairs with gold similarities."""

import math

import pytest
import torch
from given_vectors import GivenVectors, agree, batch_of, columns
from sentence_transformers.sentence_transformer import losses as st

from polyvec.errors import DataError
from polyvec.train.compared import Compared
from polyvec.train.losses.scored import angle, cosent, mse_score

GOLD = torch.tensor([0.1, 0.9, 0.5, 0.5, 0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("scale", [20.0, 1.0])
@pytest.mark.parametrize(("theirs", "ours"), [(st.CoSENTLoss, cosent), (st.AnglELoss, angle)])
@pytest.mark.parametrize("size", [6, 7])
def test_sentence_transformers(theirs, ours, scale, size):
    agree(
        theirs(GivenVectors(), scale=scale),
        lambda v: ours(batch_of(v, score_B=GOLD), temperature=1 / scale),
        columns(6, 6, size=size),
        GOLD,
    )


def test_negatives_have_gold_0_and_positives_1():
    agree(st.AnglELoss(GivenVectors()), lambda v: angle(batch_of(v)), columns(4, 4, 4))


def test_cosine_similarity_loss():
    loss = st.CosineSimilarityLoss(GivenVectors())
    gold = GOLD.float().double()
    agree(loss, lambda v: mse_score(batch_of(v, score_B=gold)), columns(6, 6), gold)


def test_cosent_by_hand():
    """Cosines 1 and 0 with gold in the wrong order, then in the right one."""
    batch = Compared.pairs(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    for gold, expected in (
        ([0.0, 1.0], math.log(1 + math.e)),
        ([1.0, 0.0], math.log(1 + 1 / math.e)),
    ):
        found = cosent(
            Compared.pairs(batch.query_BE, batch.document_NE, score_B=torch.tensor(gold)),
            temperature=1.0,
        )
        torch.testing.assert_close(found, torch.tensor(expected))


def test_the_right_order_by_a_wide_gap_has_no_loss():
    batch = Compared.pairs(
        torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, -1.0]]), score_B=torch.tensor([1.0, 0.0])
    )
    assert cosent(batch) < 1e-6


def test_angle_has_a_gradient_where_the_cosine_has_none():
    """The first pair's vectors are equal: its cosine is at its maximum."""
    query = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.3, 1.0, 0.0, 0.2]], requires_grad=True)
    document = query.detach().clone()
    document[1, 0] = -1
    slopes = []
    for loss in (cosent, angle):
        query.grad = None
        loss(Compared.pairs(query, document, score_B=torch.tensor([0.0, 1.0]))).backward()
        slopes.append(query.grad[0].norm())
    assert slopes[0] < 1e-4 < slopes[1]


def test_mse_is_least_at_the_gold_score():
    cosine = math.cos(1.0)
    query, document = torch.tensor([[1.0, 0.0]]), torch.tensor([[cosine, math.sin(1.0)]])
    found = {
        gold: mse_score(Compared.pairs(query, document, score_B=torch.tensor([gold])))
        for gold in (cosine, cosine - 0.5)
    }
    assert found[cosine] < 1e-12
    torch.testing.assert_close(found[cosine - 0.5], torch.tensor(0.25))


@pytest.mark.parametrize("loss", [cosent, angle, mse_score])
def test_nothing_to_order(loss):
    with pytest.raises(DataError, match="scores of the rows, or negatives"):
        loss(batch_of(columns(3, 3)))
