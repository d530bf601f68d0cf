"""Losses that follow a teacher."""

import math

import pytest
import torch
from given_vectors import GivenVectors, agree, batch_of, columns
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.util import pairwise_cos_sim

from polyvec.train.compared import Compared
from polyvec.train.losses.distillation import kl_rank


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
