"""One ranking from several: scores on a common scale, or ranks, weighted and added.

Q queries, N documents.
"""

import math
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from polyvec.errors import DataError, InputError, ShapeError

D = TypeVar("D", bound=Hashable)  # a document: an id, or a row


def min_max_fusion(
    scores_QN: Sequence[np.ndarray],
    weights: Sequence[float] | None = None,
    retrieved_QN: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Weighted sum of score matrices, each query's scores first scaled to 0 ... 1, [Q, N].

    With `retrieved_QN`, a mask for each matrix, scores are scaled over the documents that a model
    retrieved, and add 0 elsewhere; a document that none retrieved scores -1.

    PromptReps' hybrid (Zhuang et al. 2024, arXiv:2404.18424) is dense and sparse scores with
    weights of one half. A query whose scores are all equal adds zeros. Raises ShapeError for
    different shapes, InputError unless there is one weight for each matrix,
    DataError for a score that is NaN or infinite.
    """
    if len({each.shape for each in scores_QN}) != 1:
        shapes = ", ".join(str(each.shape) for each in scores_QN) or "none"
        raise ShapeError(f"fusion: score matrices of shapes {shapes}, expected equal shapes")
    weights = weights if weights is not None else [1 / len(scores_QN)] * len(scores_QN)
    if len(weights) != len(scores_QN):
        raise InputError(
            f"fusion: {len(weights)} weights for {len(scores_QN)} score matrices; give one each"
        )
    for each_QN in scores_QN:
        if len(wrong := np.argwhere(~np.isfinite(each_QN))):
            query, document = wrong[0].tolist()
            raise DataError(
                f"fusion: the score of query {query} and document {document} is NaN or infinite; "
                "encode the texts again"
            )
    masks_QN = retrieved_QN or [np.ones(each.shape, bool) for each in scores_QN]
    fused_QN = np.zeros(scores_QN[0].shape, np.float32)
    for weight, each_QN, mask_QN in zip(weights, scores_QN, masks_QN, strict=True):
        low_Q1 = np.where(mask_QN, each_QN, np.inf).min(axis=1, keepdims=True)
        high_Q1 = np.where(mask_QN, each_QN, -np.inf).max(axis=1, keepdims=True)
        # 1 where all scores are equal, so that 0 is divided by 1 and not by 0.
        range_Q1 = np.where(high_Q1 > low_Q1, high_Q1 - low_Q1, 1)
        low_Q1 = np.where(np.isfinite(low_Q1), low_Q1, 0)  # nothing was retrieved
        fused_QN += np.where(mask_QN, weight * (each_QN - low_Q1) / range_Q1, 0)
    if retrieved_QN:
        fused_QN[~np.logical_or.reduce(masks_QN)] = -1
    return fused_QN


def retrieved(scores_QN: np.ndarray, depth: int, *, positive: bool = False) -> np.ndarray:
    """Which documents are among a query's best `depth`, [Q, N]; with `positive` those above 0.

    An index of words finds no document that shares none with the query. Equal scores at the end
    come in the order of the documents.
    """
    mask_QN = scores_QN > 0 if positive else np.ones(scores_QN.shape, bool)
    if depth < scores_QN.shape[1]:
        last_QN = np.argsort(-scores_QN, axis=1, kind="stable")[:, depth:]
        np.put_along_axis(mask_QN, last_QN, False, axis=1)
    return mask_QN


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[D]], k: float = 60, weights: Sequence[float] | None = None
) -> list[tuple[D, float]]:
    """Each document of one query's rankings with its fused score, the best first.

    The score is the sum of weight / (k + rank) over the rankings that hold the document, rank 1
    being the best (Cormack et al. 2009, "Reciprocal Rank Fusion outperforms Condorcet and
    individual rank learning methods", with k = 60). Equal scores come in the order of the
    rankings. Raises InputError for a k below 0 or weights that do not fit, DataError for a
    document that a ranking holds twice.

    >>> [document for document, _ in reciprocal_rank_fusion([["a", "b"], ["b", "c"]])]
    ['b', 'a', 'c']
    """
    weights = weights if weights is not None else [1.0] * len(rankings)
    if len(weights) != len(rankings):
        raise InputError(f"fusion: {len(weights)} weights for {len(rankings)} rankings")
    if not (math.isfinite(k) and k >= 0 and all(math.isfinite(each) for each in weights)):
        raise InputError(
            f"fusion: k is {k} and weights are {list(weights)}, expected finite numbers, k from 0"
        )
    fused: dict[D, float] = {}
    for number, (ranking, weight) in enumerate(zip(rankings, weights, strict=True)):
        ranking = list(ranking)  # a numpy array, too
        if len(set(ranking)) < len(ranking):
            twice = next(each for each in ranking if ranking.count(each) > 1)
            raise DataError(f"fusion: ranking {number} holds document {twice!r} twice")
        for rank, document in enumerate(ranking, start=1):
            fused[document] = fused.get(document, 0.0) + weight / (k + rank)
    # sorted is stable, and keys are in the order of the rankings.
    return sorted(fused.items(), key=lambda pair: -pair[1])
