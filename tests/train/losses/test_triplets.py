"""Margins: by hand, and sentence-transformers'."""

import math

import pytest
import torch
from given_vectors import GivenVectors, agree, batch_of, columns
from sentence_transformers.sentence_transformer import losses as st
from torch.nn import functional as F

from polyvec.errors import DataError, SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.triplets import (
    batch_triplet,
    hier_triplet,
    margin_triplet,
    mega_batch_margin,
    rank,
    triplet,
)

METRICS = {
    "euclidean": st.TripletDistanceMetric.EUCLIDEAN,
    "manhattan": st.TripletDistanceMetric.MANHATTAN,
    "cosine": st.TripletDistanceMetric.COSINE,
}
LABELS = torch.tensor([0, 1, 0, 2, 1, 2, 0, 1])


@pytest.mark.parametrize("distance", METRICS)
@pytest.mark.parametrize("margin", [5.0, 0.3])
def test_triplet(distance, margin):
    theirs = st.TripletLoss(GivenVectors(), METRICS[distance], triplet_margin=margin)
    agree(
        theirs,
        lambda v: triplet(batch_of(v), margin=margin, distance=distance),
        columns(6, 6, 6),
    )


def test_satisfied_triplets_have_no_loss():
    batch = Compared.pairs(torch.eye(2), torch.cat([torch.eye(2), -torch.eye(2)]))
    assert triplet(batch, margin=1.0) == 0
    torch.testing.assert_close(triplet(batch, margin=2.5), torch.tensor(0.5))


def test_a_triplet_for_each_negative_of_each_positive():
    query, document = columns(1, 4)
    positive = torch.tensor([True, True, False, False])
    batch = Compared(query, document, torch.zeros(4, dtype=torch.long), positive)
    apart = (query - document).norm(dim=1)
    expected = [F.relu(apart[p] - apart[n] + 1) for p in (0, 1) for n in (2, 3)]
    torch.testing.assert_close(triplet(batch), torch.stack(expected).mean())


def test_no_negatives_for_triplets():
    with pytest.raises(DataError, match="loss 'triplet' needs negatives"):
        triplet(batch_of(columns(3, 3)))


def test_mega_batch_margin():
    theirs = st.MegaBatchMarginLoss(GivenVectors(), use_mini_batched_version=False)
    agree(theirs, lambda v: mega_batch_margin(batch_of(v)), columns(6, 6))


def test_margin_by_hand():
    query, document = torch.eye(2), torch.tensor([[0.9, 0.2], [0.7, 1.0]])
    # s(q, p) 0.9 and 1.0; others' documents 0.7 and 0.2; others' queries 0.2 and 0.7.
    expected = (0.4 - 0.9 + 0.7) + 0 + 0 + (0.4 - 1.0 + 0.7)
    found = margin_triplet(Compared.pairs(query, document))
    torch.testing.assert_close(found, torch.tensor(expected / 2))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (st.BatchHardTripletLoss, {"select": "hard"}),
        (st.BatchSemiHardTripletLoss, {"select": "semi_hard"}),
        (st.BatchAllTripletLoss, {"select": "all"}),
    ],
)
@pytest.mark.parametrize("margin", [5.0, 0.2])
def test_batch_triplets(theirs, ours, distance, margin):
    functions = st.BatchHardTripletLossDistanceFunction
    metric = getattr(functions, f"{distance}_distance")
    vectors = columns(8)
    loss = theirs(GivenVectors(), distance_metric=metric, margin=margin)
    agree(
        loss,
        lambda v: batch_triplet(of_labels(v), distance=distance, margin=margin, **ours),
        vectors,
        LABELS,
    )


def test_semi_hard_negatives_are_farther_than_the_positive():
    """0 and 1 are alike; -1 is as far from 0 as 1 is, so the negative of (0, 1) is 4."""
    query = torch.tensor([[0.0], [1.0], [-1.0], [4.0]])
    batch = Compared.pairs(query, query, label_B=torch.tensor([0, 0, 1, 2]))
    # Of (1, 0): -1, at a distance of 2.
    found = batch_triplet(batch, select="semi_hard", margin=5.0)
    torch.testing.assert_close(found, torch.tensor(((1 - 4 + 5) + (1 - 2 + 5)) / 2))


def test_soft_margin():
    loss = st.BatchHardSoftMarginTripletLoss(GivenVectors())
    agree(loss, lambda v: batch_triplet(of_labels(v), soft=True), columns(8), LABELS)


def of_labels(vectors):
    return Compared.pairs(vectors[0], vectors[0].detach(), label_B=LABELS)


def test_batch_triplet_needs_two_texts_of_a_label():
    query = columns(3)[0]
    for label in ([0, 1, 2], [0, 0, 0]):
        batch = Compared.pairs(query, query, label_B=torch.tensor(label))
        with pytest.raises(DataError, match="two texts of a label"):
            batch_triplet(batch)
    with pytest.raises(SettingsError, match="soft has no effect"):
        batch_triplet(batch, soft=True, select="all")


def test_levels_by_hand():
    """A query's documents at cosine 0.9, 0.5 and 0.8 with levels 3, 2 and 1; another's alone."""
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    document = torch.tensor([[c, math.sqrt(1 - c * c)] for c in (0.5, 0.9, 0.8, 0.1)])
    owner, positive = torch.tensor([0, 0, 0, 1]), torch.tensor([True, False, False, True])
    batch = Compared(query, document, owner, positive, teacher_N=torch.tensor([2.0, 3.0, 1.0, 0.5]))
    # Below 3 comes 2: 0.5 - 0.9 + 0.5 = 0.1; below 2 comes 1: 0.8 - 0.5 + 0.2 = 0.5.
    found = hier_triplet(batch, margins=(0.5, 0.2))
    torch.testing.assert_close(found, torch.tensor((0.1 + 0.5) / 2))
    # In the order given: 0.9 - 0.5 + 0.1 = 0.5 and 0.8 - 0.9 + 0.1 = 0.
    ordered = Compared(query, document, owner, positive)
    torch.testing.assert_close(hier_triplet(ordered), torch.tensor(0.25))


def test_well_ordered_levels_have_no_loss():
    document = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    batch = Compared(
        torch.tensor([[1.0, 0.0]]),
        document,
        torch.zeros(3, dtype=torch.long),
        torch.tensor([True, False, False]),
    )
    assert hier_triplet(batch, margins=(0.2,)) == 0


def test_rank_by_hand():
    query = torch.tensor([[1.0, 0.0]])
    document = torch.tensor([[c, math.sqrt(1 - c * c)] for c in (0.5, 0.9, 0.15)])
    owner, positive = torch.zeros(3, dtype=torch.long), torch.tensor([True, False, False])
    batch = Compared(query, document, owner, positive, teacher_N=torch.tensor([3.0, 1.0, 0.0]))
    logistic = [math.log(1 + math.exp(s - 0.5)) for s in (0.9, 0.15)]
    torch.testing.assert_close(rank(batch), torch.tensor(sum(logistic) / 2))
    hinge = rank(batch, form="hinge", margin=0.3)
    torch.testing.assert_close(hinge, torch.tensor((0.3 + 0.9 - 0.5) / 2))
    graded = [(3 - 1) * logistic[0], 3 * logistic[1], math.log(1 + math.exp(0.15 - 0.9))]
    torch.testing.assert_close(rank(batch, graded=True), torch.tensor(sum(graded) / 3))


def test_nothing_to_rank():
    with pytest.raises(DataError, match="two relevances"):
        rank(batch_of(columns(1, 1)))
