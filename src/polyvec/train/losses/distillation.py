"""Losses that follow a teacher: its scores, its vectors, or the model's own richer scores.

B queries, N documents, M pairs, K documents of a query.
"""

import torch
from torch import Tensor

from polyvec.train.compared import Compared
from polyvec.train.losses.part import (
    Pairs,
    Similarity,
    given,
    needs,
    own_scores,
    positive_number,
)


@needs("teacher_N")
def kl_rank(
    batch: Compared,
    *,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    similarity: Similarity = "cosine",
    times_squared_temperature: bool = False,
) -> Tensor:
    """KL(softmax(t / teacher_temperature) || softmax(s / temperature)), over a query's documents.

    Mean over queries, in nats; 0 when equal (BGE, ULLME; SBERT's DistillKLDiv multiplies by the
    squared temperature, Hinton et al. 2015, arXiv:1503.02531). `teacher_temperature` is the
    student's by default.
    """
    teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
    positive_number("loss 'kl_rank'", temperature=temperature, teacher=teacher_temperature)
    pairs = Pairs.of(batch)
    score_M = own_scores(batch, pairs, similarity) / temperature
    teacher_M = given(batch, "teacher_N", "kl_rank")[pairs.column_M].float() / teacher_temperature
    loss = listwise_kl(pairs, score_M, teacher_M, len(batch.query_BE))
    return loss * temperature**2 if times_squared_temperature else loss


def listwise_kl(pairs: Pairs, score_M: Tensor, teacher_M: Tensor, num_queries: int) -> Tensor:
    """Mean over queries of KL(softmax(teacher) || softmax(score)) over the pairs of each."""
    # Not -inf, whose difference to itself is NaN: the least float has a probability of 0, too.
    empty = torch.finfo(torch.float32).min
    log_model_BK = pairs.table(score_M.float(), empty, num_queries).log_softmax(dim=1)
    log_teacher_BK = pairs.table(teacher_M.detach(), empty, num_queries).log_softmax(dim=1)
    teacher_BK = log_teacher_BK.exp()
    term_BK = torch.where(teacher_BK > 0, teacher_BK * (log_teacher_BK - log_model_BK), 0.0)
    return term_BK.sum() / len(pairs.row_M.unique())
