"""Losses that follow a teacher: its scores, its vectors, or the model's own richer scores.

B queries, N documents, M pairs, K documents of a query.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.embed.part import wide
from polyvec.errors import DataError
from polyvec.train.compared import Compared
from polyvec.train.losses.part import (
    Pairs,
    Similarity,
    Triples,
    VectorSize,
    given,
    matrix,
    needs,
    once,
    own_scores,
    pair_similarity,
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


@needs("teacher_N")
def list_mle(
    batch: Compared, *, temperature: float = 1.0, similarity: Similarity = "cosine"
) -> Tensor:
    """Mean over queries of -sum of log(e^s_i / sum of e^s_j, j from i on), in the teacher's order.

    The probability of a query's documents in falling order of the teacher's scores by Plackett and
    Luce (ListMLE, Xia et al. 2008; PE-Rank, arXiv:2406.14848), s being similarity / temperature;
    0 for a single document. Of equal scores the document that was given first comes first.
    """
    positive_number("loss 'list_mle'", temperature=temperature)
    pairs = Pairs.of(batch)
    score_M = own_scores(batch, pairs, similarity) / temperature
    teacher_M = given(batch, "teacher_N", "list_mle")[pairs.column_M].float()
    num_queries, empty = len(batch.query_BE), torch.finfo(torch.float32).min
    score_BK = pairs.table(score_M, empty, num_queries)
    teacher_BK = pairs.table(teacher_M.detach(), float("-inf"), num_queries)
    order_BK = teacher_BK.argsort(dim=1, descending=True, stable=True)
    score_BK = score_BK.gather(1, order_BK)
    there_BK = teacher_BK.gather(1, order_BK).isfinite()
    rest_BK = score_BK.flip(1).logcumsumexp(dim=1).flip(1)
    return torch.where(there_BK, rest_BK - score_BK, 0.0).sum() / len(pairs.row_M.unique())


@needs("teacher_N")
def margin_mse(batch: Compared, *, similarity: Similarity = "dot") -> Tensor:
    """Mean of ((s(q, p) - s(q, n)) - (t(q, p) - t(q, n)))^2 over positives and own negatives.

    Hofstätter et al. 2020, arXiv:2010.02666.
    """
    teacher_N = given(batch, "teacher_N", "margin_mse")
    query_T, positive_T, negative_T = Triples.of(batch, "margin_mse")
    query_TE = batch.query_BE[query_T]
    margin_T = pair_similarity(
        query_TE, batch.document_NE[positive_T], similarity
    ) - pair_similarity(query_TE, batch.document_NE[negative_T], similarity)
    taught_T = teacher_N[positive_T].to(margin_T) - teacher_N[negative_T].to(margin_T)
    return F.mse_loss(margin_T, taught_T.detach())


VectorDistance = Literal["mse", "l2", "l1", "cosine"]


@once
@needs("teacher_query_BS")
def kd_mse(batch: Compared, *, distance: VectorDistance = "mse") -> Tensor:
    """Mean over texts, queries and documents, of the distance to the teacher's vectors.

    "mse": mean over dimensions of (x - t)^2; "l2": |x - t|; "l1": mean over dimensions of |x - t|;
    "cosine": 1 - cos(x, t) (Jasper).
    Reimers and Gurevych 2020, arXiv:2004.09813. Vectors of another size: "kd_projected".
    """
    return vector_distance(*_both(batch, "kd_mse"), distance, "kd_mse")


@once
@needs("teacher_query_BS")
class ProjectedDistillation(nn.Module):
    """kd_mse of vectors that a trained linear layer maps to the teacher's size, and then dropped.

    Reimers and Gurevych 2020, arXiv:2004.09813; sentence-transformers' EmbedDistillLoss.
    """

    def __init__(
        self, vector_size: VectorSize, teacher_size: int, distance: VectorDistance = "mse"
    ) -> None:
        super().__init__()
        self.map, self.distance = nn.Linear(vector_size, teacher_size), distance

    def forward(self, batch: Compared) -> Tensor:
        vectors, teacher = _both(batch, "kd_projected")
        mapped = self.map(vectors.to(self.map.weight.dtype))
        return vector_distance(mapped, teacher, self.distance, "kd_projected")


@needs("teacher_query_BS")
def kd_similarity(batch: Compared) -> Tensor:
    """Mean of (cos(x, y) - cos of the teacher's)^2 over all pairs of texts of the batch.

    Jasper's second term, weighted 200 beside 10 * kd_mse by cosine and 20 * kd_relative (Zhang et
    al. 2024, arXiv:2412.19048).
    """
    vectors, teacher = _both(batch, "kd_similarity")
    taught = matrix(teacher, teacher, "cosine")
    return F.mse_loss(matrix(vectors, vectors, "cosine"), taught.to(vectors))


@needs("teacher_query_BS")
def kd_relative(batch: Compared, *, margin: float = 0.015, most_pairs: int = 2048) -> Tensor:
    """Mean of max(0, s(c) - s(d) + margin) over two pairs of texts, c less similar to the teacher.

    Jasper's third term (Zhang et al. 2024, arXiv:2412.19048). Of P pairs of texts there are
    P (P - 1) / 2 comparisons: of more than `most_pairs` every second, third ... pair is taken.
    """
    vectors, teacher = _both(batch, "kd_relative")
    row_P, column_P = torch.triu_indices(len(vectors), len(vectors), 1, device=vectors.device)
    stride = -(-len(row_P) // most_pairs)
    row_P, column_P = row_P[::stride], column_P[::stride]
    score_P, taught_P = (
        pair_similarity(each[row_P], each[column_P], "cosine") for each in (vectors, teacher)
    )
    first, second = torch.triu_indices(len(row_P), len(row_P), 1, device=vectors.device)
    sign = torch.where(taught_P[second] < taught_P[first], 1, -1)
    return F.relu(sign * (score_P[second] - score_P[first]) + margin).mean()


def vector_distance(vectors: Tensor, teacher: Tensor, distance: str, loss: str) -> Tensor:
    if vectors.shape != teacher.shape:
        raise DataError(
            f"loss {loss!r}: the teacher's vectors have {teacher.shape[1]} dimensions, the "
            f"model's {vectors.shape[1]}; use 'kd_projected' or 'kd_similarity'"
        )
    if distance == "mse":
        return F.mse_loss(vectors, teacher)
    if distance == "l1":
        return F.l1_loss(vectors, teacher)
    if distance == "l2":
        return torch.linalg.vector_norm(vectors - teacher, dim=-1).mean()
    return (1 - F.cosine_similarity(vectors, teacher, dim=-1)).mean()


def _both(batch: Compared, loss: str) -> tuple[Tensor, Tensor]:
    """Vectors of queries, then documents, and the teacher's."""
    query_BS, document_NS = given(batch, "teacher_query_BS", loss), batch.teacher_document_NS
    assert document_NS is not None, "a task that fills one of them fills both"
    vectors = wide(torch.cat([batch.query_BE, batch.document_NE]))
    return vectors, torch.cat([query_BS, document_NS]).detach().to(vectors)
