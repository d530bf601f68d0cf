"""Losses of pairs with classes.

B queries, N documents, M pairs, E vector size.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.embed.part import wide
from polyvec.errors import DataError, SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.part import (
    Distance,
    Pairs,
    VectorSize,
    distances,
    given,
    needs,
    once,
    reads,
)

Feature = Literal["query", "document", "difference", "product"]


@reads("label_B")
def contrastive(batch: Compared, *, margin: float = 0.5, distance: Distance = "cosine") -> Tensor:
    """Mean of half of y d^2 + (1 - y) max(0, margin - d)^2, d the distance of a pair.

    y is the label, 1 or 0; without labels 1 for positives and 0 for negatives (Hadsell et al.
    2006, CVPR).
    """
    apart_M, label_M = _labelled(batch, distance)
    each_M = label_M * apart_M**2 + (1 - label_M) * F.relu(margin - apart_M) ** 2
    return 0.5 * each_M.mean()


@reads("label_B")
def online_contrastive(
    batch: Compared, *, margin: float = 0.5, distance: Distance = "cosine"
) -> Tensor:
    """Sum of d^2 over hard positives and of max(0, margin - d)^2 over hard negatives.

    Positives are hard if a negative of the batch is nearer, negatives if a positive is farther;
    sentence-transformers' OnlineContrastiveLoss.
    """
    apart_M, label_M = _labelled(batch, distance)
    positive_M = label_M == 1
    if not bool(positive_M.any() & ~positive_M.all()):
        raise DataError("loss 'online_contrastive' needs pairs of both labels in a batch")
    known_M = apart_M.detach()
    hard_positive_M = positive_M & (known_M > known_M[~positive_M].amin())
    hard_negative_M = ~positive_M & (known_M < known_M[positive_M].amax())
    near = (apart_M[hard_positive_M] ** 2).sum()
    return near + (F.relu(margin - apart_M[hard_negative_M]) ** 2).sum()


def _labelled(batch: Compared, distance: str) -> tuple[Tensor, Tensor]:
    """Distance and label of each pair: positives if the batch has labels, else all documents."""
    pairs = Pairs.of(batch) if batch.label_B is None else Pairs.positives(batch)
    if batch.label_B is None:
        label_M = batch.positive_N[pairs.column_M]
    else:
        label_M = batch.label_B[pairs.row_M]
        if bool(((label_M != 0) & (label_M != 1)).any()):
            raise DataError("losses 'contrastive' and 'online_contrastive' need labels 0 and 1")
    query_ME, document_ME = batch.query_BE[pairs.row_M], batch.document_NE[pairs.column_M]
    apart_M = distances(query_ME, document_ME, distance)
    return apart_M, label_M.to(apart_M)


@once
@needs("label_B")
class SoftmaxNLI(nn.Module):
    """Cross-entropy of W [u; v; |u - v|] to the label of the query's first positive.

    SBERT (Reimers and Gurevych 2019, arXiv:1908.10084), InferSent with "product" u * v, E-SSL
    with labels of transforms. W, a linear layer in float32, is trained along and then dropped.
    """

    def __init__(
        self,
        vector_size: VectorSize,
        num_labels: int,
        features: Sequence[Feature] = ("query", "document", "difference"),
    ) -> None:
        super().__init__()
        if not features or num_labels < 2:
            raise SettingsError(
                f"loss 'softmax_nli': {num_labels} labels and {len(features)} features, expected "
                "two labels and a feature at least"
            )
        self.features = tuple(features)
        self.head = nn.Linear(len(self.features) * vector_size, num_labels)

    def forward(self, batch: Compared) -> Tensor:
        label_B = given(batch, "label_B", "softmax_nli")
        wrong_B = (label_B < 0) | (label_B >= self.head.out_features)
        if bool(wrong_B.any()):
            raise DataError(
                f"loss 'softmax_nli': a row has the label {int(label_B[wrong_B][0])}, expected 0 "
                f"to {self.head.out_features - 1}; set num_labels to the number of labels"
            )
        return F.cross_entropy(self.logits(batch), label_B)

    def logits(self, batch: Compared) -> Tensor:
        """A score for each label of each query, [B, labels]."""
        u, v = wide(batch.query_BE), wide(batch.document_NE[batch.first_positive])
        every = {"query": u, "document": v, "difference": (u - v).abs(), "product": u * v}
        joined = torch.cat([every[feature] for feature in self.features], dim=-1)
        return self.head(joined.to(self.head.weight.dtype))
