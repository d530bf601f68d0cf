"""Losses with margins: triplets, levels, ranks.

B queries, N documents, M positive pairs, T triples, E vector size.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.errors import DataError, SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.part import (
    Distance,
    InBatch,
    Pairs,
    Similarity,
    Triples,
    distance_matrix,
    distances,
    given,
    masked,
    matrix,
    needs,
    negatives,
    own_scores,
)


def triplet(batch: Compared, *, margin: float = 1.0, distance: Distance = "euclidean") -> Tensor:
    """Mean of max(0, d(q, p) - d(q, n) + margin) over positives and own negatives.

    SBERT (Reimers and Gurevych 2019, arXiv:1908.10084; margin 1, sentence-transformers' default
    is 5); 0 when satisfied.
    """
    triples = Triples.of(batch, "triplet")
    query_TE = batch.query_BE[triples.query_T]
    near_T = distances(query_TE, batch.document_NE[triples.positive_T], distance)
    far_T = distances(query_TE, batch.document_NE[triples.negative_T], distance)
    return F.relu(near_T - far_T + margin).mean()


def margin_triplet(
    batch: Compared,
    *,
    margin: float = 0.4,
    similarity: Similarity = "dot",
    in_batch: InBatch = True,
) -> Tensor:
    """Mean of max(0, margin - s(q, p) + s(q, n)) + max(0, margin - s(q, p) + s(q', p)).

    n is the negative that is most similar to q, q' the query of another that is most similar to p
    (Paragram, Wieting et al. 2015, arXiv:1506.03487; Piccolo2's margin).
    """
    pairs = Pairs.positives(batch)
    positive_M = own_scores(batch, pairs, similarity)
    score_MN = matrix(batch.query_BE[pairs.row_M], batch.document_NE, similarity)
    hardest_M = masked(score_MN, negatives(batch, in_batch)[pairs.row_M]).amax(dim=1)
    back_MB = matrix(batch.document_NE[pairs.column_M], batch.query_BE, similarity)
    back_M = masked(back_MB, ~batch.no_negatives.T[pairs.column_M]).amax(dim=1)
    sides = (margin - positive_M + hardest_M, margin - positive_M + back_M)
    return (pairs.weight * sum(F.relu(side) for side in sides)).sum()


def mega_batch_margin(
    batch: Compared,
    *,
    positive_margin: float = 0.8,
    negative_margin: float = 0.3,
    in_batch: InBatch = True,
) -> Tensor:
    """Mean of max(0, positive_margin - cos(q, p)) + max(0, cos(q, n) - negative_margin).

    n is the most similar negative (Wieting and Gimpel 2018, arXiv:1711.05732).
    """
    pairs = Pairs.positives(batch)
    positive_M = own_scores(batch, pairs, "cosine")
    score_MN = matrix(batch.query_BE[pairs.row_M], batch.document_NE, "cosine")
    hardest_M = masked(score_MN, negatives(batch, in_batch)[pairs.row_M]).amax(dim=1)
    loss_M = F.relu(positive_margin - positive_M) + F.relu(hardest_M - negative_margin)
    return (pairs.weight * loss_M).sum()


def hier_triplet(
    batch: Compared,
    *,
    margins: tuple[float, ...] = (0.1,),
    similarity: Similarity = "cosine",
) -> Tensor:
    """Mean of max(0, s(level k + 1) - s(level k) + margin k) over a query's neighbouring levels.

    Levels are a query's documents by falling teacher score; without scores in the order given,
    positives first. The last margin holds for all deeper levels. 0 for well-ordered levels
    (NGCSE, Li et al. 2023, arXiv:2309.06453).
    """
    if not margins:
        raise SettingsError("loss 'hier_triplet': margins is empty")
    pairs = Pairs.of(batch)
    if batch.teacher_N is None:
        level_M = -pairs.rank.float()
    else:
        level_M = batch.teacher_N[pairs.column_M].float()
        order_M = (-level_M).argsort(stable=True)
        order_M = order_M[pairs.row_M[order_M].argsort(stable=True)]
        pairs, level_M = Pairs(pairs.row_M[order_M], pairs.column_M[order_M]), level_M[order_M]
    score_M = own_scores(batch, pairs, similarity)
    depth = pairs.rank[:-1].clamp(max=len(margins) - 1)
    margin = torch.tensor(margins, device=depth.device, dtype=score_M.dtype)[depth]
    lower = (pairs.row_M[1:] == pairs.row_M[:-1]) & (level_M[1:] < level_M[:-1])
    if not bool(lower.any()):
        raise DataError("loss 'hier_triplet' needs rows with two levels of documents or more")
    return F.relu(score_M[1:] - score_M[:-1] + margin)[lower].mean()


@needs("teacher_N", "graded")
def rank(
    batch: Compared,
    *,
    form: Literal["logistic", "hinge"] = "logistic",
    margin: float = 0.1,
    graded: bool = False,
    similarity: Similarity = "cosine",
    in_batch: InBatch = True,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Mean of (y_j - y_k) * f(s_k - s_j) over a query's documents with relevance y_j above y_k.

    f(x) = log(1 + e^x) ("logistic", Search-Adaptor, Yoon et al. 2024, arXiv:2310.08750) or
    max(0, margin + x) ("hinge"). Relevance is 1 for positives and 0 for negatives; if `graded`
    the teacher's scores of the query's own documents. Scores have no temperature. reduction: "sum"
    over all pairs of documents of the batch, as in Search-Adaptor.
    """
    if graded:
        pairs = Pairs.of(batch)
        gold_M = given(batch, "teacher_N", "rank")[pairs.column_M].float()
        score_M = own_scores(batch, pairs, similarity)
        gold_BK = pairs.table(gold_M.to(score_M), float("nan"), len(batch.query_BE))
        score_BK = pairs.table(score_M, 0.0, len(batch.query_BE))
        gap = gold_BK[:, :, None] - gold_BK[:, None, :]
        wrong = score_BK[:, None, :] - score_BK[:, :, None]
    else:
        pairs = Pairs.positives(batch)
        score_MN = matrix(batch.query_BE[pairs.row_M], batch.document_NE, similarity)
        wrong = score_MN - own_scores(batch, pairs, similarity)[:, None]
        gap = negatives(batch, in_batch)[pairs.row_M].to(wrong)
    ordered = gap > 0  # NaN, of no document, is not
    if not bool(ordered.any()):
        raise DataError("loss 'rank' needs documents of two relevances, and the batch has one")
    each = F.softplus(wrong) if form == "logistic" else F.relu(margin + wrong)
    terms = gap[ordered] * each[ordered]
    return terms.sum() if reduction == "sum" else terms.mean()


@needs("label_B")
def batch_triplet(
    batch: Compared,
    *,
    select: Literal["hard", "semi_hard", "all"] = "hard",
    margin: float = 5.0,
    soft: bool = False,
    distance: Distance = "euclidean",
) -> Tensor:
    """max(0, d(a, p) - d(a, n) + margin) among the queries of a batch, by their labels.

    "hard": each text's farthest of its label and nearest of another (Hermans et al. 2017,
    arXiv:1703.07737), mean over texts; with `soft` log(1 + e^(d(a, p) - d(a, n))), no margin.
    "semi_hard": the nearest n beyond p, else the farthest (FaceNet, Schroff et al. 2015,
    arXiv:1503.03832), mean over pairs. "all": mean over triplets with a loss.
    """
    if soft and select != "hard":
        raise SettingsError(f"loss 'batch_triplet': soft has no effect with select {select!r}")
    label_B = given(batch, "label_B", "batch_triplet")
    apart_BB = distance_matrix(batch.query_BE, batch.query_BE, distance)
    same_BB = label_B[:, None] == label_B[None, :]
    positive_BB = same_BB & ~torch.eye(len(label_B), dtype=torch.bool, device=label_B.device)
    if not bool((positive_BB.any(dim=1) & ~same_BB.all(dim=1)).any()):
        raise DataError(
            "loss 'batch_triplet' needs two texts of a label and one of another in the batch"
        )
    if select == "hard":
        usable_B = positive_BB.any(dim=1) & ~same_BB.all(dim=1)
        far_B = masked(apart_BB, positive_BB).amax(dim=1)[usable_B]
        near_B = masked(apart_BB, ~same_BB, float("inf")).amin(dim=1)[usable_B]
        return (F.softplus(far_B - near_B) if soft else F.relu(far_B - near_B + margin)).mean()
    row_P, column_P = positive_BB.nonzero(as_tuple=True)
    near_P = apart_BB[row_P, column_P]
    if select == "all":
        each_PB = F.relu(near_P[:, None] - apart_BB[row_P] + margin)
        each_PB = torch.where(same_BB[row_P], 0.0, each_PB)
        return each_PB.sum() / (each_PB > 0).sum().clamp(min=1)
    sorted_BB = masked(apart_BB, ~same_BB, float("inf")).sort(dim=1).values
    place_P1 = torch.searchsorted(sorted_BB.detach()[row_P], near_P.detach()[:, None], right=True)
    place_P1 = place_P1.clamp(max=len(label_B) - 1)
    beyond_P = sorted_BB[row_P].gather(1, place_P1).squeeze(1)
    farthest_P = masked(apart_BB, ~same_BB).amax(dim=1)[row_P]
    far_P = torch.where(beyond_P.isfinite(), beyond_P, farthest_P)
    return F.relu(near_P - far_P + margin).mean()
