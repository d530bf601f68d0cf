"""Losses that follow a teacher."""

import itertools
import math

import pytest
import torch
from given_vectors import GivenVectors, agree, batch_of, columns
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.util import pairwise_cos_sim, pairwise_dot_score

from polyvec.errors import DataError
from polyvec.train.compared import Compared
from polyvec.train.losses.distillation import (
    ProjectedDistillation,
    kd_mse,
    kd_relative,
    kd_similarity,
    kl_rank,
    list_mle,
    margin_mse,
)


def teacher(rows, count):
    return torch.randn(rows, count, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.1, 0.5)])
def test_distill_kl_div(temperatures):
    labels = teacher(4, 3)
    student, of_teacher = temperatures
    theirs = st.DistillKLDivLoss(
        GivenVectors(),
        similarity_fct=pairwise_cos_sim,
        student_temperature=student,
        teacher_temperature=of_teacher,
    )
    agree(
        theirs,
        lambda v: kl_rank(
            batch_of(v, teacher_N=labels.float().double().T.flatten()),
            temperature=student,
            teacher_temperature=of_teacher,
            times_squared_temperature=True,
        ),
        columns(4, 4, 4, 4),
        labels.float().double(),
    )


def test_by_hand_with_different_numbers_of_documents():
    """Query 0 has three documents, query 1 two, query 2 one (whose KL is 0)."""
    query = torch.eye(3)
    document = torch.eye(3)[[0, 1, 0, 1, 0, 2]]
    owner = torch.tensor([0, 1, 0, 0, 1, 2])
    scores = torch.tensor([2.0, 0.0, 1.0, 0.0, 1.0, 5.0])
    positive = torch.tensor([True, True, False, False, False, True])
    found = kl_rank(Compared(query, document, owner, positive, teacher_N=scores))
    model = {0: [1.0, 1.0, 0.0], 1: [1.0, 0.0]}
    taught = {0: [2.0, 1.0, 0.0], 1: [0.0, 1.0]}
    expected = 0.0
    for row in (0, 1):
        p, q = (
            [math.exp(s) / sum(map(math.exp, each[row])) for s in each[row]]
            for each in (taught, model)
        )
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
    torch.testing.assert_close(found, torch.tensor(expected))


def test_equal_distributions_have_no_loss_and_the_teacher_no_gradient():
    query, document = columns(3, 9)
    batch = Compared.pairs(query, document)
    scores = torch.nn.functional.cosine_similarity(query[batch.owner_N], document)
    scores.requires_grad_()
    value = kl_rank(Compared.pairs(query.requires_grad_(), document, teacher_N=scores))
    value.backward()
    assert value.abs() < 1e-12
    assert scores.grad is None


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_margin_mse(count, similarity):
    labels = teacher(4, 1 + count)
    functions = {"dot": pairwise_dot_score, "cosine": pairwise_cos_sim}
    theirs = st.MarginMSELoss(GivenVectors(), functions[similarity])
    agree(
        theirs,
        lambda v: margin_mse(batch_of(v, teacher_N=labels.T.flatten()), similarity=similarity),
        columns(4, 4, *[4] * count),
        labels,
    )


@pytest.mark.parametrize("distance", ["mse", "l2", "cosine"])
def test_vectors_of_a_teacher(distance):
    labels = torch.stack(columns(5, 5, seed=7), dim=1)
    taught = {"teacher_query_BS": labels[:, 0], "teacher_document_NS": labels[:, 1]}
    theirs = st.EmbedDistillLoss(GivenVectors(), distance)
    agree(theirs, lambda v: kd_mse(batch_of(v, **taught), distance=distance), columns(5, 5), labels)


def test_vectors_through_a_trained_map():
    class Sized(GivenVectors):
        def get_embedding_dimension(self):
            return 6

    labels = torch.stack(columns(5, 5, seed=7, size=9), dim=1)
    taught = {"teacher_query_BS": labels[:, 0], "teacher_document_NS": labels[:, 1]}
    theirs = st.MSELoss(Sized(), projection_dim=9).double()
    ours = ProjectedDistillation(vector_size=6, teacher_size=9).double()
    ours.map.load_state_dict(theirs.projection.state_dict())
    agree(theirs, lambda v: ours(batch_of(v, **taught)), columns(5, 5), labels)
    torch.testing.assert_close(ours.map.weight.grad, theirs.projection.weight.grad)


def test_a_teacher_of_another_size():
    taught = {"teacher_query_BS": torch.ones(2, 4), "teacher_document_NS": torch.ones(2, 4)}
    with pytest.raises(DataError, match=r"4 dimensions, the model's 6; use 'kd_projected'"):
        kd_mse(batch_of(columns(2, 2), **taught))


def test_l1_by_hand():
    taught = {"teacher_query_BS": torch.zeros(1, 2), "teacher_document_NS": torch.ones(1, 2)}
    batch = Compared.pairs(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 0.0]]), **taught)
    torch.testing.assert_close(kd_mse(batch, distance="l1"), torch.tensor((1 + 3 + 0 + 1) / 4))


def jasper():
    """The model's and the teacher's unit vectors of six texts, and the batch."""
    vectors, taught = columns(3, 3), columns(3, 3, seed=5, size=9)
    more = {"teacher_query_BS": taught[0], "teacher_document_NS": taught[1]}
    units = [torch.nn.functional.normalize(torch.cat(each)) for each in (vectors, taught)]
    return batch_of(vectors, **more), *units


def test_similarities_of_a_teacher():
    batch, vectors, taught = jasper()
    expected = sum(
        (vectors[i] @ vectors[j] - taught[i] @ taught[j]) ** 2 for i in range(6) for j in range(6)
    )
    torch.testing.assert_close(kd_similarity(batch), expected / 36)


def test_order_of_a_teacher():
    """Every two of the 15 pairs of six texts: the less similar one to the teacher must be below."""
    batch, vectors, taught = jasper()
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    expected = []
    for place, one in enumerate(pairs):
        for other in pairs[place + 1 :]:
            low, high = sorted((one, other), key=lambda p: float(taught[p[0]] @ taught[p[1]]))
            wrong = vectors[low[0]] @ vectors[low[1]] - vectors[high[0]] @ vectors[high[1]]
            expected.append(torch.relu(wrong + 0.015))
    torch.testing.assert_close(kd_relative(batch), torch.stack(expected).mean())
    few = kd_relative(batch, most_pairs=8)
    kept = {pairs[place] for place in range(0, 15, 2)}
    chosen = [
        term
        for term, (one, other) in zip(expected, itertools.combinations(pairs, 2), strict=True)
        if {one, other} <= kept
    ]
    torch.testing.assert_close(few, torch.stack(chosen).mean())


def test_list_mle_by_hand():
    """Scores ln 1, ln 2, ln 3 in the teacher's order third, first, second."""
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    document = torch.tensor([[0.0, 0.0], [math.log(2), 0.0], [math.log(3), 0.0], [5.0, 0.0]])
    batch = Compared(
        query,
        document,
        owner_N=torch.tensor([0, 0, 0, 1]),
        positive_N=torch.tensor([True, False, False, True]),
        teacher_N=torch.tensor([0.5, 0.1, 0.9, 0.3]),
    )
    found = list_mle(batch, similarity="dot")
    first = -math.log(3 / 6) - math.log(1 / 3) - math.log(2 / 2)
    assert found.item() == pytest.approx((first + 0.0) / 2, abs=1e-6)


# Of allRank's listMLE (github.com/allegro/allRank, c884756) of the same scores, in float64.
SCORES = (0.3, -1.2, 2.0, 0.7, 1.5, 0.4, -0.6, 0.9, 0.1)
ALLRANK = {
    1.0: (
        3.1545600149,
        "-0.117011354 -0.324250709 0.118547591 0.322714472 0.250086702 -0.250086702 "
        "-0.288861861 0.429298806 -0.140436945",
    ),
    0.5: (
        5.0301829384,
        "-0.419839897 -0.665668112 0.536184931 0.549323078 0.600166341 -0.600166341 "
        "-0.640149279 1.087294893 -0.447145614",
    ),
}


@pytest.mark.parametrize("temperature", ALLRANK)
def test_list_mle_is_allranks(temperature):
    """Three queries with 4, 2 and 3 documents, whose similarity is their first number."""
    value, gradient = ALLRANK[temperature]
    document = torch.tensor(SCORES, dtype=torch.float64)[:, None].requires_grad_()
    batch = Compared(
        torch.ones(3, 1, dtype=torch.float64),
        document,
        owner_N=torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2]),
        positive_N=torch.tensor([True, False, False, False, True, False, True, False, False]),
        teacher_N=torch.tensor([0.5, 2.0, 1.0, 0.2, 0.1, 0.9, 3.0, 1.5, 2.5]),
    )
    found = list_mle(batch, temperature=temperature, similarity="dot")
    found.backward()
    assert found.item() == pytest.approx(value, abs=1e-6)
    wanted = [float(each) for each in gradient.split()]
    assert document.grad[:, 0].tolist() == pytest.approx(wanted, abs=1e-6)
