"""Variants of InfoNCE that change its positive, its negatives or its target.

B queries, N documents, M positive pairs, K views of a document, E vector size. Scores are
similarities divided by the temperature.
"""

import dataclasses
import hashlib
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.embed.part import wide
from polyvec.errors import SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.info_nce import info_nce
from polyvec.train.losses.part import (
    InBatch,
    Pairs,
    Similarity,
    VectorSize,
    given,
    masked,
    matrix,
    needs,
    negatives,
    once,
    own_scores,
    positive_number,
)


class Scores(NamedTuple):
    """Scores of positive pairs, and of each query to all documents, of which some are negatives."""

    pairs: Pairs
    positive_M: Tensor
    score_MN: Tensor
    kept_MN: Tensor

    @classmethod
    def of(
        cls,
        batch: Compared,
        temperature: float,
        *,
        similarity: str = "cosine",
        in_batch: InBatch = True,
    ) -> "Scores":
        positive_number("losses", temperature=temperature)
        pairs = Pairs.positives(batch)
        score_MN = matrix(batch.query_BE[pairs.row_M], batch.document_NE, similarity) / temperature
        positive_M = own_scores(batch, pairs, similarity) / temperature
        return cls(pairs, positive_M, score_MN, negatives(batch, in_batch)[pairs.row_M])

    @property
    def total_M(self) -> Tensor:  # noqa: N802 - a tensor
        """log of the sum over the positive and its negatives of e^score."""
        negative_M = masked(self.score_MN, self.kept_MN).logsumexp(dim=1)
        return torch.logaddexp(self.positive_M, negative_M)

    @property
    def num_negatives(self) -> Tensor:
        return self.kept_MN.sum(dim=1)

    def mean(self, loss_M: Tensor) -> Tensor:
        """Mean over the positives of a query, then over queries."""
        return (self.pairs.weight * loss_M).sum()


def debiased_info_nce(
    batch: Compared,
    *,
    temperature: float = 0.05,
    concentration: float = 0.0,
    class_prior: float = 0.0,
    similarity: Similarity = "cosine",
    in_batch: InBatch = True,
) -> Tensor:
    """-log(e^p / (e^p + G)), G = (sum of w e^n - class_prior * number * e^p) / (1 - class_prior).

    The weights w = e^(concentration * n), without gradient and with mean 1, make hard negatives
    count more (Robinson et al. 2021, arXiv:2010.04592); `class_prior` is the share of false
    negatives (Chuang et al. 2020, arXiv:2007.00224), and G is at least
    number * e^(-1 / temperature). Both 0: InfoNCE.
    """
    if not 0 <= class_prior < 1:
        raise SettingsError(f"loss 'debiased_info_nce': class_prior {class_prior} is not in [0, 1)")
    scores = Scores.of(batch, temperature, similarity=similarity, in_batch=in_batch)
    hardness_MN = masked(concentration * scores.score_MN.detach(), scores.kept_MN)
    log_number_M = scores.num_negatives.to(hardness_MN).log()
    log_weight_MN = hardness_MN - hardness_MN.logsumexp(dim=1, keepdim=True) + log_number_M[:, None]
    weighted_MN = torch.where(scores.kept_MN, log_weight_MN + scores.score_MN, float("-inf"))
    log_sum_M = weighted_MN.logsumexp(dim=1)
    if class_prior:
        # All sizes over the largest, so that e^score does not overflow.
        largest_M = torch.maximum(log_sum_M, scores.positive_M).detach()
        false_M = class_prior * (log_number_M + scores.positive_M - largest_M).exp()
        rest_M = ((log_sum_M - largest_M).exp() - false_M) / (1 - class_prior)
        least_M = (log_number_M - 1 / temperature - largest_M).exp()
        log_sum_M = torch.maximum(rest_M, least_M).log() + largest_M
    return scores.mean(torch.logaddexp(scores.positive_M, log_sum_M) - scores.positive_M)


def arc_margin(
    batch: Compared,
    *,
    temperature: float = 0.05,
    margin_degrees: float = 10.0,
    in_batch: InBatch = True,
) -> Tensor:
    """InfoNCE whose positive is cos(angle + margin) (ArcCSE, Zhang et al. 2022, ACL 2022).

    Beyond 180 degrees it goes on falling, as ArcFace's (Deng et al. 2019, arXiv:1801.07698). A
    margin of 0 is InfoNCE.
    """
    scores = Scores.of(batch, temperature, in_batch=in_batch)
    margin = math.radians(margin_degrees)
    cosine_M = scores.positive_M * temperature
    # The least sine keeps the root's gradient finite where the vectors are equal.
    sine_M = (1 - cosine_M**2).clamp(min=1e-12).sqrt()
    added_M = cosine_M * math.cos(margin) - sine_M * math.sin(margin)
    beyond_M = cosine_M - margin * math.sin(margin)
    moved_M = torch.where(cosine_M > -math.cos(margin), added_M, beyond_M)
    moved = scores._replace(positive_M=moved_M / temperature)
    return moved.mean(moved.total_M - moved.positive_M)


@needs("score_B")
def soft_info_nce(
    batch: Compared,
    *,
    temperature: float = 0.05,
    similarity: Similarity = "cosine",
    in_batch: InBatch = True,
) -> Tensor:
    """-sum of t log p, t = y for the positive and (1 - y) / number for each negative.

    p is the softmax over both, y the gold score between 0 and 1; y = 1 is InfoNCE (CLHAIF, Cheng
    et al. 2023, arXiv:2305.01918).
    """
    gold_B = given(batch, "score_B", "soft_info_nce")
    scores = Scores.of(batch, temperature, similarity=similarity, in_batch=in_batch)
    gold_M, total_M = gold_B[scores.pairs.row_M].to(scores.positive_M), scores.total_M
    share_M = (1 - gold_M) / scores.num_negatives.clamp(min=1)
    surprise_MN = torch.where(scores.kept_MN, total_M[:, None] - scores.score_MN, 0.0)
    positive_M = gold_M * (total_M - scores.positive_M)
    return scores.mean(positive_M + share_M * surprise_MN.sum(dim=1))


def peer_ccr(
    batch: Compared,
    *,
    temperature: float = 0.05,
    beta: float = 0.5,
    similarity: Similarity = "cosine",
    in_batch: InBatch = True,
) -> Tensor:
    """-log p of the positive + beta * mean of log p over all candidates.

    Contrastive confidence regularisation: the second term takes confidence from false negatives
    (Wang et al. 2024, arXiv:2401.00165). beta = 0 is InfoNCE.
    """
    scores = Scores.of(batch, temperature, similarity=similarity, in_batch=in_batch)
    total_M = scores.total_M
    positive_M = scores.positive_M - total_M
    log_MN = torch.where(scores.kept_MN, scores.score_MN - total_M[:, None], 0.0)
    mean_M = (positive_M + log_MN.sum(dim=1)) / (1 + scores.num_negatives)
    return scores.mean(-positive_M + beta * mean_M)


@needs("view_NKE")
def max_view(
    batch: Compared, *, temperature: float = 1 / 30, similarity: Similarity = "cosine"
) -> Tensor:
    """InfoNCE whose scores are the largest over a document's views (DEBATER, arXiv:2502.12974).

    One view is InfoNCE. DEBATER is half of this plus half of `self_distill`.
    """
    scores = best_view(batch, temperature, similarity, "max_view")
    return scores.mean(scores.total_M - scores.positive_M)


@needs("view_NKE")
def self_distill(
    batch: Compared, *, temperature: float = 1 / 30, similarity: Similarity = "cosine"
) -> Tensor:
    """Cross-entropy of the scores of last views to those of best views, over all candidates.

    The teacher, the softmax of `max_view`'s scores, gets no gradient (DEBATER, Ji et al. 2025,
    arXiv:2502.12974).
    """
    best = best_view(batch, temperature, similarity, "self_distill")
    last = Scores.of(batch, temperature, similarity=similarity)
    teacher_MC = _candidates(best).detach().softmax(dim=1)
    log_MC = _candidates(last).log_softmax(dim=1)
    return last.mean(-torch.where(teacher_MC > 0, teacher_MC * log_MC, 0.0).sum(dim=1))


def _candidates(scores: Scores) -> Tensor:
    """Scores of the positive and of its negatives, -inf elsewhere, [M, 1 + N]."""
    return torch.cat([scores.positive_M[:, None], masked(scores.score_MN, scores.kept_MN)], dim=1)


def best_view(batch: Compared, temperature: float, similarity: str, loss: str) -> Scores:
    """Scores to the view of each document that is most similar to the query."""
    view_NKE = given(batch, "view_NKE", loss)
    scores = Scores.of(batch, temperature, similarity=similarity)
    row_M, column_M = scores.pairs
    query_ME = batch.query_BE[row_M]
    each_MNK = matrix(query_ME, view_NKE.flatten(0, 1), similarity).unflatten(1, view_NKE.shape[:2])
    score_MN = each_MNK.amax(dim=2) / temperature
    positive_M = score_MN.gather(1, column_M[:, None]).squeeze(1)
    return scores._replace(score_MN=score_MN, positive_M=positive_M)


@needs("step")
def mixed_negatives(
    batch: Compared,
    *,
    temperature: float = 0.05,
    num_hardest: int = 64,
    num_mixed: int = 16,
    num_with_query: int = 0,
    num_with_positive: int = 0,
    positive_share: float = 0.2,
    in_batch: InBatch = True,
    seed: int = 0,
) -> Tensor:
    """InfoNCE with more negatives that are mixed from hard ones, of length 1, without gradient.

    From a query's `num_hardest` negatives n: a n_i + (1 - a) n_j with a in (0, 1), `num_mixed` of
    them, and b q + (1 - b) n with b in (0, 0.5), `num_with_query` (MoCHi, Kalantidis et al. 2020,
    arXiv:2010.01028); positive_share * p + (1 - positive_share) * n, `num_with_positive` (MixCSE,
    Zhang et al. 2022, AAAI). Draws depend on the seed and the step alone.
    """
    scores = Scores.of(batch, temperature, in_batch=in_batch)
    query_ME = F.normalize(wide(batch.query_BE), dim=-1)[scores.pairs.row_M]
    document_NE = F.normalize(wide(batch.document_NE), dim=-1).detach()
    number = min(num_hardest, len(document_NE))
    hardest = masked(scores.score_MN, scores.kept_MN).topk(number, dim=1)
    usable_M = scores.num_negatives.clamp(max=number)
    step = given(batch, "step", "mixed_negatives")
    draw = Draw(f"{seed} {step}", hardest.indices, usable_M, document_NE)
    one, other, a = draw(num_mixed), draw(num_mixed), draw.share(num_mixed)
    mixed = [a * one + (1 - a) * other]
    with_query, b = draw(num_with_query), draw.share(num_with_query) / 2
    mixed.append(b * query_ME.detach()[:, None] + (1 - b) * with_query)
    positive_ME = document_NE[scores.pairs.column_M][:, None]
    mixed.append(positive_share * positive_ME + (1 - positive_share) * draw(num_with_positive))
    mixed_MXE = F.normalize(torch.cat(mixed, dim=1), dim=-1)
    extra_MX = torch.einsum("me,mxe->mx", query_ME, mixed_MXE) / temperature
    # A query without negatives has none to mix.
    extra_M = masked(extra_MX, usable_M[:, None] > 0).logsumexp(dim=1)
    return scores.mean(torch.logaddexp(scores.total_M, extra_M) - scores.positive_M)


class Draw:
    """Draws documents among the first candidates of each pair, the same in every process."""

    def __init__(
        self, seed: str, candidate_MH: Tensor, usable_M: Tensor, document_NE: Tensor
    ) -> None:
        self.generator = torch.Generator().manual_seed(hash_of(seed))
        self.candidate_MH, self.usable_M = candidate_MH, usable_M
        self.document_NE = document_NE

    def __call__(self, number: int) -> Tensor:
        """Vectors, [M, number, E]."""
        place_MX1 = self.share(number) * self.usable_M[:, None, None]
        drawn_MX = place_MX1.squeeze(2).long().clamp(max=self.candidate_MH.shape[1] - 1)
        return self.document_NE[self.candidate_MH.gather(1, drawn_MX)]

    def share(self, number: int) -> Tensor:
        """Numbers between 0 and 1, [M, number, 1]."""
        found = torch.rand(len(self.usable_M), number, 1, generator=self.generator)
        return found.to(self.document_NE)


@once
@needs("label_B")
class RelationalInfoNCE(nn.Module):
    """InfoNCE of q + e_r, e_r being a trained vector of the query's relation, its label.

    RSE (Wang et al. 2022, "Relational sentence embedding", arXiv:2212.08802). The vectors stay in
    the loss, as `relation_RE`; they are not saved with the embedder.
    """

    def __init__(
        self,
        vector_size: VectorSize,
        num_relations: int,
        temperature: float = 0.05,
        in_batch: InBatch = True,
    ) -> None:
        super().__init__()
        self.relation_RE = nn.Parameter(0.02 * torch.randn(num_relations, vector_size))
        self.temperature, self.in_batch = temperature, in_batch

    def forward(self, batch: Compared) -> Tensor:
        label_B = given(batch, "label_B", "relational_info_nce")
        query_BE = wide(batch.query_BE) + self.relation_RE[label_B]
        moved = dataclasses.replace(batch, query_BE=query_BE)
        return info_nce(moved, temperature=self.temperature, in_batch=self.in_batch)


def hash_of(text: str) -> int:
    """A number that a text has in every process; Python's hash changes with each."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
