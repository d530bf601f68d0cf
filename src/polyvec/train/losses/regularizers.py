"""Losses of vectors themselves: sparse, spread out, near their partners.

B queries, N documents, P positives, E vector size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.embed.part import wide
from polyvec.errors import DataError, SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.part import Pairs, given, matrix, needs, once


@once
@needs("step", "warmup_steps")
def flops(
    batch: Compared,
    *,
    query_weight: float = 3e-4,
    document_weight: float = 1e-4,
    warmup_steps: int = 0,
    most_active: int = 0,
) -> Tensor:
    """Sum over dimensions of (mean of |w| over texts)^2, of queries and of documents, weighted.

    Paria et al. 2020, arXiv:2004.05665; SPLADE (arXiv:2107.05720), whose weights grow with the
    square of the step until `warmup_steps`. Texts with no more than `most_active` numbers that
    are not 0 are left out of the sum, not of the mean's count (sentence-transformers' threshold).
    """

    def one(vectors: Tensor) -> Tensor:
        if most_active:
            active = (vectors != 0).sum(dim=1, keepdim=True) > most_active
            vectors = torch.where(active, vectors, 0.0)
        return (vectors.abs().mean(dim=0) ** 2).sum()

    query, document = one(wide(batch.query_BE)), one(wide(batch.document_NE))
    share = warmup(batch, warmup_steps, "flops")
    return share * (query_weight * query + document_weight * document)


@once
@needs("step", "warmup_steps")
def l1(
    batch: Compared,
    *,
    query_weight: float = 3e-4,
    document_weight: float = 1e-4,
    warmup_steps: int = 0,
) -> Tensor:
    """Mean over texts of the sum of |w|, of queries and of documents, weighted.

    For queries in place of `flops` (Lassance and Clinchant 2022, arXiv:2207.03834); the weights
    grow as there.
    """
    query, document = (
        wide(each).abs().sum(dim=1).mean() for each in (batch.query_BE, batch.document_NE)
    )
    share = warmup(batch, warmup_steps, "l1")
    return share * (query_weight * query + document_weight * document)


def warmup(batch: Compared, steps: int, loss: str) -> float:
    """min(1, (step / steps)^2), so 0 in the first step."""
    if steps < 0:
        raise SettingsError(f"loss {loss!r}: warmup_steps is {steps}, expected 0 or more")
    return min(1.0, (given(batch, "step", loss) / steps) ** 2) if steps else 1.0


def alignment_uniformity(
    batch: Compared,
    *,
    alpha: float = 2.0,
    t: float = 2.0,
    uniformity_weight: float = 1.0,
) -> Tensor:
    """E |q - p|^alpha + uniformity_weight * log E e^(-t |x - y|^2), of unit vectors.

    The second is the mean of that of queries and that of positives, over pairs of each (Wang and
    Isola 2020, arXiv:2005.10242).
    """
    pairs = Pairs.positives(batch)
    query_BE, document_NE = (
        F.normalize(wide(each), dim=-1) for each in (batch.query_BE, batch.document_NE)
    )
    apart_M = (query_BE[pairs.row_M] - document_NE[pairs.column_M]).pow(2).sum(dim=-1)
    alignment = (pairs.weight * apart_M ** (alpha / 2)).sum()
    sides = [uniformity(each, t) for each in (query_BE, document_NE[pairs.column_M])]
    return alignment + uniformity_weight * torch.stack(sides).mean()


def uniformity(unit_PE: Tensor, t: float) -> Tensor:
    """log of the mean over pairs of e^(-t * squared distance)."""
    squared_PP = 2 - 2 * unit_PE @ unit_PE.T
    pairs = torch.triu_indices(len(unit_PE), len(unit_PE), 1, device=unit_PE.device)
    found = -t * squared_PP[pairs[0], pairs[1]]
    if not len(found):
        return unit_PE.sum() * 0
    return found.logsumexp(dim=0) - torch.tensor(float(len(found))).log()


def orthogonal_regularization(
    batch: Compared, *, mean_weight: float = 1.0, second_moment_weight: float = 1.0
) -> Tensor:
    """mean_weight * M1^2 + second_moment_weight * max(0, M2 - 1 / E), of queries and documents.

    M1 and M2 are the means of the cosine and of its square over pairs of different texts of a
    side; the loss is the mean of both sides (Zhang et al. 2017, arXiv:1708.06320; EmbeddingGemma).
    """
    terms = []
    for vectors in (batch.query_BE, batch.document_NE):
        cosine = matrix(vectors, vectors, "cosine")
        apart = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
        cosine, number = torch.where(apart, cosine, 0.0), max(1, len(vectors) * (len(vectors) - 1))
        second = F.relu(cosine.pow(2).sum() / number - 1 / vectors.shape[1])
        terms.append(mean_weight * (cosine.sum() / number) ** 2 + second_moment_weight * second)
    return torch.stack(terms).mean()


def orthogonal_equivariance(batch: Compared) -> Tensor:
    """Mean of (cos(q_i, q_j) - cos(p_i, p_j))^2 over pairs of rows, p being q transformed.

    0 if a transform that all rows share moves the vectors by an orthogonal map (CARE, Gupta et
    al. 2023, arXiv:2306.13924).
    """
    document_BE = batch.document_NE[batch.first_positive]
    change_BB = matrix(batch.query_BE, batch.query_BE, "cosine") - matrix(
        document_BE, document_BE, "cosine"
    )
    number = max(1, len(change_BB) * (len(change_BB) - 1))
    return change_BB.pow(2).sum() / number


def barlow_twins(batch: Compared, *, off_diagonal_weight: float = 0.005) -> Tensor:
    """Sum of (1 - C_ii)^2 + off_diagonal_weight * sum of C_ij^2, C the correlations of q and p.

    Of dimension i of the queries with j of their positives, over the batch (Barlow Twins, Zbontar
    et al. 2021, arXiv:2103.03230). No temperature.
    """
    pairs = _several(batch, "barlow_twins")
    sides = (wide(batch.query_BE)[pairs.row_M], wide(batch.document_NE)[pairs.column_M])
    query_ME, positive_ME = (
        (each - each.mean(dim=0)) / (each.var(dim=0, correction=0) + 1e-5).sqrt() for each in sides
    )
    correlation_EE = query_ME.T @ positive_ME / len(query_ME)
    diagonal_E = correlation_EE.diagonal()
    rest = correlation_EE.pow(2).sum() - diagonal_E.pow(2).sum()
    return (1 - diagonal_E).pow(2).sum() + off_diagonal_weight * rest


def vicreg(
    batch: Compared,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Tensor:
    """MSE(q, p) + mean of max(0, 1 - deviation) / 2 + sum of squared covariances / E, weighted.

    The last two are sums over both sides: standard deviations of each dimension over the batch, and
    covariances of different dimensions (VICReg, Bardes et al. 2022, arXiv:2105.04906). No
    temperature.
    """
    pairs = _several(batch, "vicreg")
    sides = (wide(batch.query_BE)[pairs.row_M], wide(batch.document_NE)[pairs.column_M])
    variance = covariance = sides[0].new_zeros(())
    for each_ME in sides:
        variance = variance + F.relu(1 - (each_ME.var(dim=0) + 1e-4).sqrt()).mean() / 2
        covariance_EE = each_ME.T.cov()
        apart = covariance_EE.pow(2).sum() - covariance_EE.diagonal().pow(2).sum()
        covariance = covariance + apart / each_ME.shape[1]
    return (
        invariance_weight * F.mse_loss(*sides)
        + variance_weight * variance
        + covariance_weight * covariance
    )


def _several(batch: Compared, loss: str) -> Pairs:
    """Positive pairs; DataError if there is one, which has no deviation over the batch."""
    pairs = Pairs.positives(batch)
    if len(pairs.row_M) < 2:
        raise DataError(
            f"loss {loss!r} needs two pairs in a batch or more, and one has {len(pairs.row_M)}; "
            "leave out the last rows of a set with mixing = { drop_last = true }"
        )
    return pairs
