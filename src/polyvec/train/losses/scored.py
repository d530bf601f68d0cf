"""Losses of pairs with gold similarities.

B queries, N documents, M pairs, E vector size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.embed.part import wide
from polyvec.errors import DataError
from polyvec.train.compared import Compared
from polyvec.train.losses.part import Pairs, own_scores, positive_number, reads


@reads("score_B")
def cosent(batch: Compared, *, temperature: float = 0.05) -> Tensor:
    """log(1 + sum of e^((cos_j - cos_i) / temperature) over pairs with gold score i above j).

    0 in the limit of the right order; temperature 0.05 is CoSENT's and AnglE's lambda 20 (Su
    2022, kexue.fm/archives/8847; Li and Li 2024, arXiv:2309.12871). Without scores positives
    have 1 and negatives 0.
    """
    pairs, gold_M = scored(batch, "cosent")
    return order_loss(own_scores(batch, pairs, "cosine") / temperature, gold_M, temperature)


@reads("score_B")
def angle(batch: Compared, *, temperature: float = 0.05) -> Tensor:
    """CoSENT of |sum of real and imaginary parts of q / d| in complex space, for unit vectors.

    The first half of a vector holds the real parts, the second the imaginary ones. The gradient
    does not vanish where the cosine is 1 (AnglE, Li and Li 2024, arXiv:2309.12871). The sign is
    that of the authors' code, which differs from the paper's difference of angles.
    """
    pairs, gold_M = scored(batch, "angle")
    query_ME, document_ME = batch.query_BE[pairs.row_M], batch.document_NE[pairs.column_M]
    return order_loss(angle_similarity(query_ME, document_ME) / temperature, gold_M, temperature)


@reads("score_B")
def mse_score(batch: Compared) -> Tensor:
    """Mean of (cos(q, d) - gold)^2; gold scores between -1 and 1 (SBERT, arXiv:1908.10084).

    sentence-transformers' CosineSimilarityLoss.
    """
    pairs, gold_M = scored(batch, "mse_score")
    wrong_M = ~(gold_M.abs() <= 1)
    if bool(wrong_M.any()):
        raise DataError(
            f"loss 'mse_score': a row has the score {float(gold_M[wrong_M][0]):g}, which no "
            "cosine reaches; divide the scores by the greatest, or take cosent, which reads their "
            "order"
        )
    return F.mse_loss(own_scores(batch, pairs, "cosine"), gold_M)


def scored(batch: Compared, loss: str) -> tuple[Pairs, Tensor]:
    """Pairs and their gold scores.

    With scores, positives have their query's, and negatives are not used. Without, positives
    have 1 and negatives 0; DataError if there are no negatives, since nothing is to be ordered.
    """
    if batch.score_B is not None:
        pairs = Pairs.positives(batch)
        return pairs, batch.score_B[pairs.row_M].float()
    pairs = Pairs.of(batch)
    if bool(batch.positive_N.all()):
        raise DataError(f"loss {loss!r} needs scores of the rows, or negatives: the batch has none")
    return pairs, batch.positive_N[pairs.column_M].float()


def order_loss(score_M: Tensor, gold_M: Tensor, temperature: float) -> Tensor:
    """log(1 + sum of e^(score_j - score_i) over gold_i > gold_j)."""
    positive_number("losses 'cosent' and 'angle'", temperature=temperature)
    wrong_MM = score_M[None, :] - score_M[:, None]
    ordered_MM = gold_M[:, None] > gold_M[None, :]
    found = torch.where(ordered_MM, wrong_MM, float("-inf")).flatten()
    return torch.cat([found.new_zeros(1), found]).logsumexp(dim=0)


def angle_similarity(a_ME: Tensor, b_ME: Tensor) -> Tensor:
    """|sum of the parts of a / b|, [M]: the cosine plus the sum of im(a) re(b) - re(a) im(b)."""
    a_ME, b_ME = F.normalize(wide(a_ME), dim=-1), F.normalize(wide(b_ME), dim=-1)
    # A zero completes an odd number of dimensions.
    odd = a_ME.shape[1] % 2
    (real_a, imaginary_a), (real_b, imaginary_b) = (
        F.pad(each, (0, odd)).chunk(2, dim=-1) for each in (a_ME, b_ME)
    )
    cosine_M = (a_ME * b_ME).sum(dim=-1)
    return (cosine_M + (imaginary_a * real_b - real_a * imaginary_b).sum(dim=-1)).abs()
