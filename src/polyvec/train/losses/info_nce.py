"""InfoNCE and its variants: a positive against negatives in one softmax.

B queries, N documents, M positive pairs, C candidates, E vector size. Scores are similarities
divided by the temperature; sentence-transformers' `scale` is 1 / temperature.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from polyvec.errors import SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.part import (
    InBatch,
    Pairs,
    Similarity,
    given,
    masked,
    matrix,
    needs,
    negatives,
    own_scores,
    pair_similarity,
    positive_number,
)

Direction = Literal[
    "query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc", "positive_to_positive"
]
HardnessMode = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]
FalseNegatives = Literal["threshold", "absolute", "relative"]


@needs("guide_query_BG", "guide")
def info_nce(
    batch: Compared,
    *,
    temperature: float = 0.05,
    similarity: Similarity = "cosine",
    in_batch: InBatch = True,
    directions: Sequence[Direction] = ("query_to_doc",),
    partition_mode: Literal["joint", "per_direction"] = "joint",
    hardness_mode: HardnessMode | None = None,
    hardness_strength: float = 0.0,
    false_negatives: FalseNegatives | None = None,
    margin: float = 0.0,
    guide: bool = False,
) -> Tensor:
    """-log(e^p / (e^p + sum of e^n)), p a positive's score, n those of negatives; in nats.

    Mean over the positives of a query (PCL, Wu et al. 2022, arXiv:2201.12093), then over queries;
    log(1 + n) if vectors say nothing. van den Oord et al. 2018, arXiv:1807.03748.

    in_batch: which documents of other queries are negatives beside the query's own: all, their
        "positives", their "negatives" (Instructor), or none.
    directions, partition_mode: what stands in the denominator, as in sentence-transformers.
        "query_to_doc" and "doc_to_query", "per_direction": symmetric (GTR, cpt); with
        "query_to_query": Gecko; the first four, "joint": GTE (Li et al. 2023, arXiv:2308.03281),
        whose denominator holds the positive twice.
    hardness_mode, hardness_strength: adds a constant strength * similarity to negatives' scores
        (LLaVE, Lan et al. 2025, arXiv:2503.04812; EmbeddingGemma).
    false_negatives: negatives are left out whose similarity exceeds `margin` ("threshold",
        MultiCSR, DCLR), the positive's less `margin` ("absolute"; Qwen3-Embedding: -0.1), or the
        positive's less `margin` of its size ("relative"); as the model itself compares, or by
        cosine of a guide model. With guide, directions "query_to_doc", "query_to_query" and
        "positive_to_positive", "absolute": GISTEmbed (Solatorio 2024, arXiv:2402.16829).
    """
    _check(temperature, directions, partition_mode, hardness_mode, hardness_strength)
    _check_guide(false_negatives, margin, guide)
    pairs = Pairs.positives(batch)
    positive_M = own_scores(batch, pairs, similarity)
    rule = FalseNegativeRule.of(batch, pairs, positive_M, false_negatives, margin, guide)
    totals = []
    for direction in directions:
        score_MC = _scores(batch, pairs, direction, similarity)
        kept_MC = _kept(batch, pairs, direction, in_batch)
        if rule is not None:
            kept_MC = kept_MC & ~rule(direction, score_MC)
        logit_MC = score_MC / temperature
        if direction == "query_to_doc" and hardness_mode is not None:
            harder_MC = _harder(batch, pairs, hardness_mode)
            penalty_MC = hardness_strength * score_MC.detach()
            logit_MC = logit_MC + masked(penalty_MC, harder_MC, 0.0)
        totals.append(masked(logit_MC, kept_MC).logsumexp(dim=1))
    logit_M = positive_M / temperature
    if partition_mode == "per_direction":
        log_z_M = torch.stack([torch.logaddexp(logit_M, total) for total in totals]).mean(dim=0)
    else:
        # GTE's sum over the queries of a document counts its own query again.
        again = [logit_M] if "doc_to_query" in directions else []
        log_z_M = torch.stack([logit_M, *again, *totals]).logsumexp(dim=0)
    return (pairs.weight * (log_z_M - logit_M)).sum()


class LearnedInfoNCE(nn.Module):
    """InfoNCE whose temperature is trained with the model, from `temperature` on.

    The parameter is log(1 / temperature), and the temperature is at least `least_temperature`
    (CLIP, Radford et al. 2021, arXiv:2103.00020; cpt, Neelakantan et al. 2022, arXiv:2201.10005).
    """

    def __init__(
        self,
        temperature: float = 0.07,
        least_temperature: float = 0.01,
        similarity: Similarity = "cosine",
        in_batch: InBatch = True,
        directions: Sequence[Direction] = ("query_to_doc", "doc_to_query"),
        partition_mode: Literal["joint", "per_direction"] = "per_direction",
    ) -> None:
        super().__init__()
        positive_number("info_nce_learned", temperature=temperature, least=least_temperature)
        _check(temperature, directions, partition_mode, None, 0.0)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.most_log_scale = -math.log(least_temperature)
        self.similarity, self.in_batch = similarity, in_batch
        self.directions, self.partition_mode = tuple(directions), partition_mode

    def forward(self, batch: Compared) -> Tensor:
        return info_nce(
            batch,
            temperature=self.temperature,  # type: ignore[arg-type]
            similarity=self.similarity,
            in_batch=self.in_batch,
            directions=self.directions,
            partition_mode=self.partition_mode,
        )

    @property
    def temperature(self) -> Tensor:
        return (-self.log_scale.clamp(max=self.most_log_scale)).exp()


def _check(
    temperature: float,
    directions: Sequence[str],
    partition_mode: str,
    hardness_mode: str | None,
    hardness_strength: float,
) -> None:
    positive_number("loss 'info_nce'", temperature=temperature)
    if "query_to_doc" not in directions:
        raise SettingsError("loss 'info_nce': directions lack 'query_to_doc', which is required")
    alone = {"query_to_query", "doc_to_doc", "positive_to_positive"} & set(directions)
    if partition_mode == "per_direction" and alone:
        raise SettingsError(
            f"loss 'info_nce': direction {sorted(alone)[0]!r} has no positive of its own; use "
            "partition_mode 'joint'"
        )
    if (hardness_mode is None) != (hardness_strength == 0):
        raise SettingsError(
            "loss 'info_nce': hardness_mode and hardness_strength have no effect without the other"
        )


def _check_guide(false_negatives: str | None, margin: float, guide: bool) -> None:
    if false_negatives is None and (guide or margin):
        raise SettingsError(
            "loss 'info_nce': margin and guide have no effect without false_negatives. Known: "
            "'threshold', 'absolute', 'relative'"
        )


def _scores(batch: Compared, pairs: Pairs, direction: str, similarity: str) -> Tensor:
    """Similarity of each pair's anchor to the candidates of a direction, [M, C]."""
    sides = batch.query_BE, batch.document_NE
    return _compare(*sides, batch.positive_N, pairs, direction, similarity)


def _compare(
    query_BE: Tensor,
    document_NE: Tensor,
    positive_N: Tensor,
    pairs: Pairs,
    direction: str,
    similarity: str,
) -> Tensor:
    if direction == "query_to_doc":
        return matrix(query_BE[pairs.row_M], document_NE, similarity)
    if direction == "query_to_query":
        return matrix(query_BE[pairs.row_M], query_BE, similarity)
    if direction == "doc_to_query":
        return matrix(document_NE[pairs.column_M], query_BE, similarity)
    if direction == "doc_to_doc":
        return matrix(document_NE[pairs.column_M], document_NE, similarity)
    return matrix(document_NE[pairs.column_M], document_NE[positive_N], similarity)


def _kept(batch: Compared, pairs: Pairs, direction: str, in_batch: InBatch) -> Tensor:
    """Candidates of a direction that are negatives, [M, C]."""
    row_M, column_M = pairs
    if direction == "query_to_doc":
        return negatives(batch, in_batch)[row_M]
    if direction == "doc_to_query":
        return ~batch.no_negatives.T[column_M]
    if direction == "query_to_query":
        places_B = torch.arange(len(batch.query_BE), device=row_M.device)
        kept_MB = places_B != row_M[:, None]
        # A query that shares a positive is no negative, nor is one with the same text.
        kept_MB &= ~batch.no_negatives.T[column_M]
        if batch.query_text_B is not None:
            kept_MB &= batch.query_text_B != batch.query_text_B[row_M, None]
        return kept_MB
    kept_MN = batch.owner_N != row_M[:, None]
    kept_MN &= ~batch.no_negatives[row_M]
    if batch.document_text_N is not None:
        kept_MN &= batch.document_text_N != batch.document_text_N[column_M, None]
    return kept_MN[:, batch.positive_N] if direction == "positive_to_positive" else kept_MN


def _harder(batch: Compared, pairs: Pairs, mode: HardnessMode) -> Tensor:
    """Negatives whose scores are raised by their hardness, [M, N]."""
    own_MN = batch.own[pairs.row_M]
    if mode == "in_batch_negatives":
        return ~own_MN
    hard_MN = own_MN & ~batch.positive_N
    return hard_MN if mode == "hard_negatives" else hard_MN | ~own_MN


class FalseNegativeRule(NamedTuple):
    """Tells which candidates are too close to be negatives."""

    limit_M1: Tensor
    guide: tuple[Tensor, Tensor] | None
    batch: Compared
    pairs: Pairs

    @classmethod
    def of(
        cls,
        batch: Compared,
        pairs: Pairs,
        positive_M: Tensor,
        kind: FalseNegatives | None,
        margin: float,
        guide: bool,
    ) -> "FalseNegativeRule | None":
        if kind is None:
            return None
        sides = None
        if guide:
            query_BG = given(batch, "guide_query_BG", "info_nce")
            assert batch.guide_document_NG is not None
            sides = (query_BG, batch.guide_document_NG)
            guide_ME = batch.guide_document_NG[pairs.column_M]
            positive_M = pair_similarity(query_BG[pairs.row_M], guide_ME, "cosine")
        positive_M = positive_M.detach()
        if kind == "threshold":
            limit_M = torch.full_like(positive_M, margin)
        else:
            limit_M = positive_M - margin * (1 if kind == "absolute" else positive_M.abs())
        return cls(limit_M[:, None], sides, batch, pairs)

    def __call__(self, direction: str, score_MC: Tensor) -> Tensor:
        if self.guide is not None:
            known = self.batch.positive_N
            score_MC = _compare(*self.guide, known, self.pairs, direction, "cosine")
        return score_MC.detach() > self.limit_M1
