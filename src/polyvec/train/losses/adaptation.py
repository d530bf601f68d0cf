"""Losses of a projection that is trained on the vectors of a model that is not.

B queries, N documents, M positive pairs, E vector size.
"""

import math
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from polyvec.embed.part import wide
from polyvec.embed.projection.trained import Flow
from polyvec.errors import DataError, SettingsError
from polyvec.registry import Fact
from polyvec.train.compared import Compared
from polyvec.train.losses.part import Pairs, VectorSize, given, needs, once

OfFlow = Annotated[Any, Fact("flow")]


@once
@needs("base_query_BE")
def recovery(batch: Compared) -> Tensor:
    """Mean over queries of |q - q0|_1 plus mean over documents of |d - d0|_1.

    q0 and d0 are the vectors before the projection (Search-Adaptor, Yoon et al. 2024,
    arXiv:2310.08750, weighted 0.1 or 1 there); |x|_1 is the sum over dimensions. No temperature.
    """
    base_BE = given(batch, "base_query_BE", "recovery")
    base_NE = batch.base_document_NE
    assert base_NE is not None, "a task that fills one of them fills both"
    sides = ((batch.query_BE, base_BE), (batch.document_NE, base_NE))
    each = [
        (wide(after) - wide(before).detach()).abs().sum(dim=-1).mean() for after, before in sides
    ]
    return torch.stack(each).sum()


@once
@needs("teacher_N", "graded")
class QueryPrediction(nn.Module):
    """Sum over positive pairs of y * |q - p(d)|_1, by the sum of y; p is trained, and then dropped.

    Search-Adaptor (Yoon et al. 2024, arXiv:2310.08750, weighted 0.01 or 0.1 there): from a
    document's vector a network predicts the queries that it answers. y is 1, or if `graded` the
    teacher's score of the document, where it is above 0; |x|_1 is the sum over dimensions. The
    paper does not say how deep p is: here a hidden layer with ReLU. No temperature.
    """

    def __init__(
        self, vector_size: VectorSize, hidden_features: int | None = None, graded: bool = False
    ) -> None:
        super().__init__()
        hidden = vector_size if hidden_features is None else hidden_features
        if hidden < 1:
            raise SettingsError(f"loss 'query_prediction': hidden_features is {hidden}, expected 1")
        self.graded = graded
        self.predictor = nn.Sequential(
            nn.Linear(vector_size, hidden), nn.ReLU(), nn.Linear(hidden, vector_size)
        )

    def forward(self, batch: Compared) -> Tensor:
        pairs = Pairs.positives(batch)
        query_ME = wide(batch.query_BE)[pairs.row_M]
        document_ME = wide(batch.document_NE)[pairs.column_M]
        dtype = next(self.predictor.parameters()).dtype
        predicted_ME = self.predictor(document_ME.to(dtype))
        weight_M = torch.ones_like(query_ME[:, 0])
        if self.graded:
            scores_N = given(batch, "teacher_N", "query_prediction")
            weight_M = scores_N[pairs.column_M].to(weight_M).clamp(min=0)
            if not bool(weight_M.any()):
                raise DataError("loss 'query_prediction' needs a score above 0, the batch has none")
        apart_M = (query_ME - predicted_ME).abs().sum(dim=-1)
        return (weight_M * apart_M).sum() / weight_M.sum()


@once
@needs("base_query_BE")
class FlowNLL(nn.Module):
    """Mean over texts, queries and documents, of |z|^2 / 2 + E log(2 pi) / 2 - log |det dz/dx|.

    The negative log-likelihood, in nats, of vectors x that an invertible map takes to z in a
    standard normal distribution (BERT-flow, Li et al. 2020, arXiv:2011.05864). The map is the
    fact "flow", the embedder's last projection. No temperature.
    """

    flow: Flow

    def __init__(self, flow: OfFlow) -> None:
        super().__init__()
        if not isinstance(flow, Flow):
            raise SettingsError(
                "loss 'flow_nll' trains a flow, which is not the embedder's last projection; add "
                'projections = [{ kind = "flow" }]'
            )
        self.flow = flow

    def forward(self, batch: Compared) -> Tensor:
        base_BE = given(batch, "base_query_BE", "flow_nll")
        assert batch.base_document_NE is not None, "a task that fills one of them fills both"
        base_RE = wide(torch.cat([base_BE, batch.base_document_NE]))
        latent_RE = wide(torch.cat([batch.query_BE, batch.document_NE]))
        log_determinant_R = self.flow.log_determinant(base_RE)
        constant = latent_RE.shape[1] * math.log(2 * math.pi) / 2
        return (latent_RE.pow(2).sum(dim=1) / 2 - log_determinant_R).mean() + constant
