"""Losses of vectors themselves."""

import math

import pytest
import torch
from given_vectors import GivenVectors, agree, batch_of, columns
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.sparse_encoder import losses as sparse
from torch.nn import functional as F

from polyvec.errors import DataError
from polyvec.train.compared import Compared
from polyvec.train.losses.regularizers import (
    alignment_uniformity,
    barlow_twins,
    flops,
    l1,
    orthogonal_equivariance,
    orthogonal_regularization,
    vicreg,
)


class Nothing(torch.nn.Module):
    def compute_loss_from_embeddings(self, embeddings, labels):
        return embeddings[0].sum() * 0


@pytest.mark.parametrize("threshold", [None, 3])
def test_splade(threshold):
    vectors = [each.relu() for each in columns(5, 5, size=9)]
    model = GivenVectors()
    theirs = sparse.SpladeLoss(
        model,
        Nothing(),
        document_regularizer_weight=0.3,
        query_regularizer_weight=0.7,
        document_regularizer_threshold=threshold,
        query_regularizer_threshold=threshold,
    )

    def positive(loss):
        # Where a number is 0 our |w| has slope 0 and their w has 1; a relu before has none.
        return lambda v: loss([each.relu() for each in v])

    def ours(v):
        more = {"query_weight": 0.7, "document_weight": 0.3, "most_active": threshold or 0}
        return flops(batch_of(v), **more)

    agree(
        lambda features, _: theirs([{"vectors": each["vectors"].relu()} for each in features]),
        positive(ours),
        vectors,
    )


def test_flops_and_l1_by_hand():
    query = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    document = torch.zeros(2, 3)
    batch = Compared.pairs(query, document)
    assert flops(batch, query_weight=1.0, document_weight=1.0) == 2.0**2 + 1.0**2
    assert l1(batch, query_weight=1.0, document_weight=1.0) == (3 + 3) / 2
    zero = Compared.pairs(document, document)
    assert flops(zero) == 0


@pytest.mark.parametrize("loss", [flops, l1])
def test_the_weight_grows_with_the_square_of_the_step(loss):
    vectors = columns(3, 3)
    whole = loss(batch_of(vectors))
    for step, share in ((0, 0.0), (5, 0.25), (10, 1.0), (99, 1.0)):
        found = loss(batch_of(vectors, step=step), warmup_steps=10)
        torch.testing.assert_close(found, share * whole)
    with pytest.raises(DataError, match="the number of the step"):
        loss(batch_of(vectors), warmup_steps=10)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 2.0), (3.0, 0.0)])
def test_global_orthogonal_regularization(weights):
    theirs = st.GlobalOrthogonalRegularizationLoss(
        GivenVectors(), mean_weight=weights[0], second_moment_weight=weights[1]
    )
    agree(
        theirs,
        lambda v: orthogonal_regularization(
            batch_of(v), mean_weight=weights[0], second_moment_weight=weights[1]
        ),
        columns(4, 4, size=30),
    )


def test_alignment_and_uniformity_of_two_points():
    """The closed form: alignment (0 + 2) / 2, uniformity -t times the squared distance."""
    query = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    document = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    found = alignment_uniformity(Compared.pairs(query, document), t=2.0, uniformity_weight=0.5)
    torch.testing.assert_close(found, torch.tensor(1.0 + 0.5 * (-2.0 * 2 + 0.0) / 2))


def test_uniformity_of_more_points_and_another_exponent():
    query, document = columns(5, 5)
    found = alignment_uniformity(Compared.pairs(query, document), alpha=1.0, t=3.0)
    q, d = F.normalize(query), F.normalize(document)
    sides = [torch.pdist(each).pow(2).mul(-3).exp().mean().log() for each in (q, d)]
    expected = (q - d).norm(dim=1).mean() + (sides[0] + sides[1]) / 2
    torch.testing.assert_close(found, expected)


def test_a_rotation_of_all_rows_has_no_equivariance_error():
    query = columns(5)[0]
    turn = torch.linalg.qr(torch.randn(6, 6).double()).Q
    assert orthogonal_equivariance(Compared.pairs(query, query @ turn)) < 1e-12
    one, other = torch.eye(2), torch.ones(2, 2)
    found = orthogonal_equivariance(Compared.pairs(one, other))
    torch.testing.assert_close(found, torch.tensor(1.0))
    assert not math.isnan(float(orthogonal_equivariance(Compared.pairs(one[:1], one[:1]))))


def test_barlow_twins_by_hand():
    """Dimensions of q: equal to p's first, opposite to its second, uncorrelated crosswise."""
    query = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    positive = query * torch.tensor([2.0, -1.0])
    batch = Compared.pairs(query, positive)
    assert barlow_twins(batch).item() == pytest.approx(0 + 4, abs=1e-3)
    swapped = Compared.pairs(query, query.flip(1))
    assert barlow_twins(swapped).item() == pytest.approx(2 + 0.005 * 2, abs=1e-3)


def test_vicreg_by_hand():
    query = torch.tensor([[0.0, 0.0], [0.2, 0.2]])
    positive = torch.tensor([[0.0, 1.0], [0.2, 1.2]])
    # Both sides: variance 0.02, covariance 0.02.
    deviation = (0.02 + 1e-4) ** 0.5
    wanted = 25 * (2 / 4) + 25 * (1 - deviation) + 2 * (2 * 0.02**2) / 2
    assert vicreg(Compared.pairs(query, positive)).item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("loss", [barlow_twins, vicreg])
def test_a_batch_of_one_pair_has_no_deviation(loss):
    batch = Compared.pairs(torch.ones(1, 3), torch.zeros(1, 3))
    with pytest.raises(DataError, match=f"loss '{loss.__name__}' needs two pairs .*drop_last"):
        loss(batch)
