"""Search-Adaptor's regularisers by hand, and where the vectors before a projection come from."""

import pytest
import torch
from torch.nn import functional as F

from polyvec.embed.compose import compose
from polyvec.embed.projection.trained import Flow
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import DataError, SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.adaptation import FlowNLL, QueryPrediction, recovery
from polyvec.train.losses.terms import Objective
from polyvec.train.losses.triplets import rank


def batch(**more):
    """Two queries; the second document is a positive of query 1, the third a negative of 0."""
    query = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    document = torch.tensor([[1.0, 1.0], [0.0, 1.0], [3.0, 0.0]], requires_grad=True)
    owner, positive = torch.tensor([0, 1, 0]), torch.tensor([True, True, False])
    return Compared(query, document, owner, positive, **more)


def test_recovery_by_hand():
    base_query = torch.tensor([[0.5, 0.0], [0.0, 2.0]])  # |.|_1: 0.5 and 0
    base_document = torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])  # 1, 2 and 0
    found = recovery(batch(base_query_BE=base_query, base_document_NE=base_document))
    assert found.item() == pytest.approx(0.5 / 2 + 3 / 3)


def predictor(**more):
    """p(d) = 2 max(0, d) + (0, 1)."""
    found = QueryPrediction(2, **more)
    with torch.no_grad():
        for each, weight in zip(found.predictor[::2], (1.0, 2.0), strict=True):
            each.weight.copy_(weight * torch.eye(2))
            each.bias.zero_()
        found.predictor[2].bias[1] = 1.0
    return found


def test_query_prediction_by_hand():
    # p of the positives: (2, 3) and (0, 3); away from (1, 0) by 4, from (0, 2) by 1.
    assert predictor()(batch()).item() == pytest.approx((4 + 1) / 2)
    scores = torch.tensor([3.0, 1.0, 9.0])  # the negative's is not read
    found = predictor(graded=True)(batch(teacher_N=scores))
    assert found.item() == pytest.approx((3 * 4 + 1) / 4)
    with pytest.raises(DataError, match="a score above 0"):
        predictor(graded=True)(batch(teacher_N=torch.zeros(3)))


def test_search_adaptors_ranking_loss_sums_over_pairs_of_documents():
    found = rank(batch(), reduction="sum")
    query, document = batch().query_BE, batch().document_NE
    cosine = F.cosine_similarity(query[:, None], document[None], dim=-1)
    wanted = sum(
        F.softplus(cosine[q, n] - cosine[q, p])
        for q, p, negatives in ((0, 0, (1, 2)), (1, 1, (0, 2)))
        for n in negatives
    )
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(rank(batch()), wanted / 4)


def test_the_three_terms_have_a_gradient_each():
    torch.manual_seed(0)  # units of a predictor this small may all be idle
    rows = batch(base_query_BE=torch.zeros(2, 2), base_document_NE=torch.zeros(3, 2))
    tables = [{"kind": kind} for kind in ("rank", "recovery", "query_prediction")]
    objective = Objective.of(tables, facts={"vector_size": 2})
    assert objective.needs == {"base_query_BE"}
    for value in objective(rows).values():
        grads = torch.autograd.grad(value, [rows.query_BE, rows.document_NE], retain_graph=True)
        assert all(grad.abs().sum() > 0 for grad in grads)
    assert sum(each.numel() for each in objective.parameters()) == 2 * (2 * 2 + 2)


def test_a_projection_is_needed():
    from polyvec.train.settings import StageSettings
    from polyvec.train.tasks.contrastive import contrastive

    embedder = compose(EmbedderSettings("polyvec/nano-lm", normalize=True))
    with pytest.raises(SettingsError, match="the embedder has none with weights"):
        contrastive(embedder, StageSettings("scl", losses=({"kind": "recovery"},)))


def test_the_likelihood_of_a_flow_is_that_of_torch_distributions():
    torch.manual_seed(0)
    flow = Flow(4, num_blocks=2)
    for each in flow.parameters():
        torch.nn.init.normal_(each, std=0.3)
    base = torch.randn(5, 4)
    rows = Compared.pairs(
        flow(base[:2]), flow(base[2:4]), base_query_BE=base[:2], base_document_NE=base[2:4]
    )
    normal = torch.distributions.MultivariateNormal(torch.zeros(4), torch.eye(4))
    wanted = -torch.stack(
        [
            normal.log_prob(flow(x[None])[0])
            + torch.autograd.functional.jacobian(flow, x[None])[0, :, 0].det().abs().log()
            for x in base[:4]
        ]
    ).mean()
    torch.testing.assert_close(FlowNLL(flow)(rows), wanted)
    with pytest.raises(SettingsError, match="add projections"):
        FlowNLL(None)
