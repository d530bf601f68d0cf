"""Variants of InfoNCE: values by hand, and what makes each InfoNCE again."""

import math

import pytest
import torch
from given_vectors import batch_of, columns
from torch.nn import functional as F

from polyvec.train.compared import Compared
from polyvec.train.losses.info_nce import info_nce
from polyvec.train.losses.softmax import (
    RelationalInfoNCE,
    Scores,
    arc_margin,
    debiased_info_nce,
    max_view,
    mixed_negatives,
    peer_ccr,
    self_distill,
    soft_info_nce,
)

ONES = torch.ones(4, dtype=torch.float64)


def same(loss, expected_loss, vectors):
    """Equal values and gradients."""
    found = []
    for each in (loss, expected_loss):
        leaves = [vector.clone().requires_grad_() for vector in vectors]
        value = each(batch_of(leaves))
        value.backward()
        found.append([value.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "loss",
    [
        lambda batch: debiased_info_nce(batch),
        lambda batch: arc_margin(batch, margin_degrees=0.0),
        lambda batch: peer_ccr(batch, beta=0.0),
        lambda batch: soft_info_nce(
            Compared.pairs(batch.query_BE, batch.document_NE, score_B=ONES)
        ),
        lambda batch: max_view(
            Compared.pairs(batch.query_BE, batch.document_NE, view_NKE=batch.document_NE[:, None]),
            temperature=0.05,
        ),
        lambda batch: mixed_negatives(
            Compared.pairs(batch.query_BE, batch.document_NE, step=0), num_mixed=0
        ),
    ],
    ids=["debiased", "arc_margin", "peer_ccr", "soft", "max_view", "mixed"],
)
def test_info_nce_again(loss):
    same(loss, info_nce, columns(4, 4, 4))


def naive_scores(temperature=1.0):
    """Cosines of four queries to four documents over the temperature, as lists."""
    query, document = columns(4, 4)
    score = F.normalize(query) @ F.normalize(document).T / temperature
    return Compared.pairs(query, document), score.tolist()


def test_hard_negatives_weigh_more():
    batch, score = naive_scores()
    expected = 0.0
    for row in range(4):
        negative = [score[row][j] for j in range(4) if j != row]
        weight = [math.exp(2 * n) for n in negative]
        mean = sum(weight) / 3
        total = sum(w / mean * math.exp(n) for w, n in zip(weight, negative, strict=True))
        expected -= score[row][row] - math.log(math.exp(score[row][row]) + total)
    found = debiased_info_nce(batch, temperature=1.0, concentration=2.0)
    torch.testing.assert_close(found, torch.tensor(expected / 4, dtype=torch.float64))
    assert found > info_nce(batch, temperature=1.0)


@pytest.mark.parametrize("prior", [0.2, 0.6])
def test_debiased_by_the_share_of_false_negatives(prior):
    batch, score = naive_scores()
    expected = 0.0
    for row in range(4):
        positive = math.exp(score[row][row])
        total = sum(math.exp(score[row][j]) for j in range(4) if j != row)
        rest = max((total - prior * 3 * positive) / (1 - prior), 3 * math.exp(-1))
        expected -= math.log(positive / (positive + rest))
    found = debiased_info_nce(batch, temperature=1.0, class_prior=prior)
    torch.testing.assert_close(found, torch.tensor(expected / 4, dtype=torch.float64))


def test_the_debiased_estimate_has_a_least_value():
    """Positives at cosine 1, negatives at 0: 3 - 0.6 * 3 e is below 0, so 3 / e stands there."""
    batch = Compared.pairs(torch.eye(4), torch.eye(4))
    found = debiased_info_nce(batch, temperature=1.0, class_prior=0.6)
    torch.testing.assert_close(found, torch.tensor(math.log(1 + 3 * math.exp(-1) / math.e)))


def test_debiased_at_a_low_temperature_does_not_overflow():
    batch = Compared.pairs(*(each.float() for each in columns(4, 4)))
    value = debiased_info_nce(batch, temperature=0.005, class_prior=0.1, concentration=1.0)
    assert value.isfinite()


def test_angular_margin_by_hand():
    batch, score = naive_scores()
    expected = 0.0
    for row in range(4):
        positive = math.cos(math.acos(score[row][row]) + math.radians(30))
        total = math.exp(positive) + sum(math.exp(score[row][j]) for j in range(4) if j != row)
        expected -= positive - math.log(total)
    found = arc_margin(batch, temperature=1.0, margin_degrees=30.0)
    torch.testing.assert_close(found, torch.tensor(expected / 4, dtype=torch.float64))
    assert found > info_nce(batch, temperature=1.0)


def test_angular_margin_of_equal_and_of_opposite_vectors():
    """The root's gradient is finite, and beyond 180 degrees the positive still falls."""
    query = torch.eye(3)[:2].requires_grad_()
    arc_margin(Compared.pairs(query, torch.eye(3)[:2])).backward()
    assert query.grad.isfinite().all()
    values = []
    for degrees in (165.0, 175.0, 180.0):
        angle = math.radians(degrees)
        document = torch.tensor([[math.cos(angle), math.sin(angle)], [0.0, 1.0]])
        batch = Compared.pairs(torch.tensor([[1.0, 0.0]]), document)
        values.append(float(arc_margin(batch, temperature=1.0)))
    assert values == sorted(values)


def test_soft_targets_by_hand():
    batch, score = naive_scores()
    gold = [1.0, 0.7, 0.4, 0.0]
    expected = 0.0
    for row in range(4):
        log_total = math.log(sum(map(math.exp, score[row])))
        for j in range(4):
            target = gold[row] if j == row else (1 - gold[row]) / 3
            expected += target * (log_total - score[row][j])
    scored = Compared.pairs(batch.query_BE, batch.document_NE, score_B=torch.tensor(gold))
    found = soft_info_nce(scored, temperature=1.0)
    torch.testing.assert_close(
        found, torch.tensor(expected / 4, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


def test_confidence_regularisation_by_hand():
    batch, score = naive_scores()
    expected = 0.0
    for row in range(4):
        log_total = math.log(sum(map(math.exp, score[row])))
        logs = [each - log_total for each in score[row]]
        expected += -logs[row] + 0.3 * sum(logs) / 4
    found = peer_ccr(batch, temperature=1.0, beta=0.3)
    torch.testing.assert_close(found, torch.tensor(expected / 4, dtype=torch.float64))


def test_debater():
    """Half of each loss against the authors' formula, over two rows, negatives and four views."""
    query, view = columns(3)[0], torch.randn(6, 4, 6).double()
    batch = Compared.pairs(query, view[:, -1], view_NKE=view)
    each = torch.einsum("be,nke->bnk", F.normalize(query), F.normalize(view, dim=-1)) * 30
    best, last = each.amax(dim=2), each[:, :, -1]
    first = F.cross_entropy(best, torch.arange(3))
    second = -(last.log_softmax(-1) * best.softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(max_view(batch), first)
    torch.testing.assert_close(self_distill(batch), second)


def test_the_own_teacher_gets_no_gradient():
    query, view = columns(3)[0], torch.randn(3, 4, 6).double().requires_grad_()
    last = view.detach()[:, -1].requires_grad_()
    self_distill(Compared.pairs(query, last, view_NKE=view)).backward()
    assert view.grad is None
    assert last.grad.abs().max() > 1e-3


def test_mixed_negatives_are_of_length_1_without_gradient_and_lie_between():
    """One negative: all mixtures of pairs of negatives are that negative again."""
    query, document = columns(2, 2)
    query.requires_grad_(), document.requires_grad_()
    batch = Compared.pairs(query, document, step=3)
    found = mixed_negatives(batch, temperature=1.0, num_hardest=1, num_mixed=5)
    q, d = F.normalize(query), F.normalize(document)
    score = q @ d.T
    expected = [
        -score[i, i] + torch.stack([score[i, i], *[score[i, 1 - i]] * 6]).logsumexp(0)
        for i in range(2)
    ]
    torch.testing.assert_close(found, torch.stack(expected).mean())
    (grad,) = torch.autograd.grad(found, document)
    frozen = [
        -score[i, i]
        + torch.stack([score[i, i], score[i, 1 - i], *[q[i] @ d[1 - i].detach()] * 5]).logsumexp(0)
        for i in range(2)
    ]
    (expected_grad,) = torch.autograd.grad(torch.stack(frozen).mean(), document)
    torch.testing.assert_close(grad, expected_grad)


def test_mixcse_by_hand():
    """The positive's share in the extra negative is 0.2."""
    query, document = columns(2, 2)
    batch = Compared.pairs(query, document, step=0)
    found = mixed_negatives(batch, temperature=1.0, num_hardest=1, num_mixed=0, num_with_positive=1)
    q, d = F.normalize(query), F.normalize(document)
    expected = 0.0
    for i in range(2):
        mixed = F.normalize(0.2 * d[i] + 0.8 * d[1 - i], dim=0)
        scores = torch.stack([q[i] @ d[i], q[i] @ d[1 - i], q[i] @ mixed])
        expected += (scores.logsumexp(0) - scores[0]) / 2
        low, high = sorted((float(d[i] @ d[1 - i]), 1.0))
        assert low < mixed @ d[i] < high, "between the two"
    torch.testing.assert_close(found, expected)


def test_draws_depend_on_the_step_alone():
    batch = [batch_of(columns(6, 6, 6), step=step) for step in (0, 0, 1)]
    torch.manual_seed(0)
    values = [mixed_negatives(each, num_with_query=4) for each in batch]
    assert values[0] == values[1] != values[2]
    assert values[0] > info_nce(batch[0]), "more negatives"


def test_a_relation_ranks_its_own_pairs():
    """Two relations map the same query to two documents; one vector could not."""
    torch.manual_seed(0)
    query = torch.randn(8, 16).repeat(2, 1)
    document = torch.cat([query[:8] + torch.randn(16), query[:8] + torch.randn(16)])
    label = torch.arange(2).repeat_interleave(8)
    loss = RelationalInfoNCE(vector_size=16, num_relations=2)
    batch = Compared.pairs(query, document, label_B=label)
    before = float(loss(batch).detach())
    optimizer = torch.optim.Adam(loss.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
    assert loss(batch) < 0.5 * before
    assert loss(batch) < info_nce(batch)


def test_candidates_that_are_masked_have_no_share():
    known = torch.eye(4, dtype=torch.bool)
    known[0, 1] = True
    query, document = columns(4, 4)
    batch = Compared.pairs(query, document, known_BN=known)
    assert Scores.of(batch, 1.0).num_negatives.tolist() == [2, 3, 3, 3]
