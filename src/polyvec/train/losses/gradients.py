"""A loss that is given by its gradient.

B queries, N documents, M positive pairs.
"""

from typing import Literal

import torch
from torch import Tensor

from polyvec.errors import SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.part import InBatch, Similarity, masked
from polyvec.train.losses.softmax import Scores

WHERE = "loss 'gradient_paradigm'"


def gradient_paradigm(
    batch: Compared,
    *,
    temperature: float = 0.05,
    dissipation: Literal["softmax", "margin"] = "softmax",
    weight: Literal["softmax", "hardest"] = "softmax",
    ratio: float = 1.0,
    margin: float | None = None,
    similarity: Similarity = "cosine",
    in_batch: InBatch = True,
) -> Tensor:
    """Mean of G * sum of W_n * (s(q, n) - ratio * s(q, p)), where G and W have no gradient.

    So the gradient of q is G * sum of W_n * (n - ratio * p), the form that effective losses of
    sentence vectors share, with their own G, W and ratio (Li et al. 2024, arXiv:2402.18281). The
    value says nothing.

    dissipation: G is the share of negatives in the softmax of scores / temperature (InfoNCE), or 1
        while s(q, p) exceeds the largest s(q, n) by less than `margin`, then 0 (margin triplets).
    weight: W is the negatives' softmax of scores / temperature, by temperature (InfoNCE), or 1 for
        the hardest negative alone (margin triplets).
    """
    if (margin is None) != (dissipation == "softmax"):
        needed = "needs a margin" if margin is None else "reads no margin"
        raise SettingsError(f"{WHERE}: dissipation {dissipation!r} {needed}")
    scores = Scores.of(batch, temperature, similarity=similarity, in_batch=in_batch)
    score_MN = masked(scores.score_MN, scores.kept_MN)
    with torch.no_grad():
        hardest_M, place_M = score_MN.max(dim=1)
        if margin is None:
            dissipation_M = (score_MN.logsumexp(dim=1) - scores.positive_M).sigmoid()
        else:
            ahead_M = (scores.positive_M - hardest_M) * temperature
            dissipation_M = (ahead_M < margin).to(score_MN)
        if weight == "softmax":
            weight_MN = score_MN.softmax(dim=1) / temperature
        else:
            weight_MN = torch.zeros_like(score_MN).scatter(1, place_M[:, None], 1.0)
        # A query without negatives has none to weigh.
        weight_MN = masked(weight_MN, scores.kept_MN, 0.0)
    nearer_MN = (scores.score_MN - ratio * scores.positive_M[:, None]) * temperature
    return scores.mean(dissipation_M * (weight_MN * nearer_MN).sum(dim=1))
