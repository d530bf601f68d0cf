"""Similarity of vectors: of all pairs, or row by row.

N and M vectors, E numbers each.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.errors import InputError, known


def similarity_matrix(a_NE: Tensor, b_ME: Tensor, name: str) -> Tensor:
    """Similarity of every a to every b, [N, M]; larger is closer, so distances are negative."""
    _known_similarity(name)
    if name == "cosine":
        return F.normalize(a_NE, dim=-1) @ F.normalize(b_ME, dim=-1).T
    if name == "dot":
        return a_NE @ b_ME.T
    # cdist uses a matrix product for many rows by default, which is inexact for close vectors.
    exact = "donot_use_mm_for_euclid_dist"
    return -torch.cdist(a_NE, b_ME, p=2.0 if name == "euclidean" else 1.0, compute_mode=exact)


def similarity_pairs(a_NE: Tensor, b_NE: Tensor, name: str) -> Tensor:
    """Similarity of each a to the b beside it, [N]."""
    _known_similarity(name)
    if name == "cosine":
        return F.cosine_similarity(a_NE, b_NE, dim=-1)
    if name == "dot":
        return (a_NE * b_NE).sum(dim=-1)
    return -torch.linalg.vector_norm(a_NE - b_NE, ord=2 if name == "euclidean" else 1, dim=-1)


SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


def _known_similarity(name: str) -> None:
    if name not in SIMILARITIES:
        raise InputError(f"similarity {name!r} is not known.{known(name, SIMILARITIES)}")
