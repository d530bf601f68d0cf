"""Similarity of vectors: of all pairs, or row by row.

N and M vectors, E numbers each.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.embed.part import wide
from polyvec.errors import InputError, ShapeError, known


def similarity_matrix(a_NE: Tensor, b_ME: Tensor, name: str) -> Tensor:
    """Similarity of every a to every b, [N, M]; larger is closer, so distances are negative.

    Computed in float32 at least: half precision has few distinct scores near 1, which would tie.
    Raises ShapeError for vectors of different widths.
    """
    a_NE, b_ME = _comparable(a_NE, b_ME, name)
    if name == "cosine":
        return F.normalize(a_NE, dim=-1) @ F.normalize(b_ME, dim=-1).T
    if name == "dot":
        return a_NE @ b_ME.T
    # cdist uses a matrix product for many rows by default, which is inexact for close vectors.
    exact = "donot_use_mm_for_euclid_dist"
    return -torch.cdist(a_NE, b_ME, p=2.0 if name == "euclidean" else 1.0, compute_mode=exact)


def similarity_pairs(a_NE: Tensor, b_NE: Tensor, name: str) -> Tensor:
    """Similarity of each a to the b beside it, [N]; as `similarity_matrix`."""
    a_NE, b_NE = _comparable(a_NE, b_NE, name)
    if len(a_NE) != len(b_NE):
        raise ShapeError(f"similarity: {len(a_NE)} vectors and {len(b_NE)}, expected as many")
    if name == "cosine":
        return F.cosine_similarity(a_NE, b_NE, dim=-1)
    if name == "dot":
        return (a_NE * b_NE).sum(dim=-1)
    return -torch.linalg.vector_norm(a_NE - b_NE, ord=2 if name == "euclidean" else 1, dim=-1)


SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def _comparable(a_NE: Tensor, b_ME: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Both sides in one floating-point type of at least 32 bits."""
    if name not in SIMILARITIES:
        raise InputError(f"similarity {name!r} is not known.{known(name, SIMILARITIES)}")
    if a_NE.ndim != 2 or b_ME.ndim != 2 or a_NE.shape[1] != b_ME.shape[1]:
        raise ShapeError(
            f"similarity: vectors of shapes {tuple(a_NE.shape)} and {tuple(b_ME.shape)}, expected "
            "two matrices of equal width"
        )
    a_NE, b_ME = wide(a_NE), wide(b_ME)
    dtype = torch.promote_types(a_NE.dtype, b_ME.dtype)
    return a_NE.to(dtype), b_ME.to(dtype)
