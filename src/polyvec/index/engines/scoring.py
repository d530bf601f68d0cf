"""Exact scores of queries with stored vectors of every form, in numpy.

Q queries, N texts, E numbers a vector, Z numbers that are not zero, T tokens.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from polyvec.embed.projection.similarity import SIMILARITIES, similarity_matrix
from polyvec.errors import InputError, known
from polyvec.interfaces import DenseVectors, MultiVectors, SparseVectors, Vectors

# Names in Lance; a similarity that is not here is computed by us.
METRICS: Mapping[str, Literal["cosine", "dot", "l2"]] = {
    "cosine": "cosine",
    "dot": "dot",
    "euclidean": "l2",
}


def similarities(queries: Vectors, texts: Vectors, similarity: str) -> np.ndarray:
    """Scores [Q, N] of vectors of one form: the similarity, of multi-vectors MaxSim.

    MaxSim adds, over a query's tokens, the largest similarity with a text's token (ColBERT,
    Khattab and Zaharia 2020, arXiv:2004.12832). Raises InputError for a similarity of the
    model's own.
    """
    if similarity not in SIMILARITIES:
        raise InputError(
            f"similarity {similarity!r} is not known.{known(similarity, SIMILARITIES)}"
        )
    if isinstance(queries, DenseVectors) and isinstance(texts, DenseVectors):
        return _matrix(queries.values_NE, texts.values_NE, similarity)
    if isinstance(queries, SparseVectors) and isinstance(texts, SparseVectors):
        return _sparse(queries, texts, similarity)
    if isinstance(queries, MultiVectors) and isinstance(texts, MultiVectors):
        return max_sim(queries, texts, similarity)
    raise InputError(f"{type(queries).__name__} cannot be compared with {type(texts).__name__}")


def _matrix(a_NE: np.ndarray, b_ME: np.ndarray, similarity: str) -> np.ndarray:
    # Copies: torch warns of read-only arrays, such as Arrow's.
    a, b = (torch.from_numpy(np.array(each, np.float32)) for each in (a_NE, b_ME))
    return similarity_matrix(a, b, similarity).numpy()


def max_sim(queries: MultiVectors, texts: MultiVectors, similarity: str) -> np.ndarray:
    """Scores [Q, N]; a text without tokens scores 0."""
    scores_QN = np.zeros((len(queries), len(texts)), np.float32)
    held = np.flatnonzero(np.diff(texts.offsets))
    if not len(held):
        return scores_QN
    for row in range(len(queries)):
        scores_TT = _matrix(queries[row], texts.values_TE, similarity)
        best_TN = np.maximum.reduceat(scores_TT, texts.offsets[held], axis=1)
        scores_QN[row, held] = best_TN.sum(axis=0)
    return scores_QN


def _sparse(queries: SparseVectors, texts: SparseVectors, similarity: str) -> np.ndarray:
    if similarity not in ("cosine", "dot"):
        return _matrix(queries.to_dense(), texts.to_dense(), similarity)
    rows_Z = np.repeat(np.arange(len(texts)), np.diff(texts.indptr))
    queries_QE = queries.to_dense()
    scores_QN = np.stack(
        [
            np.bincount(rows_Z, query_E[texts.indices_Z] * texts.values_Z, len(texts))
            for query_E in queries_QE
        ]
        or [np.empty(len(texts))]
    )[: len(queries)].astype(np.float32)
    if similarity == "cosine":
        lengths_N = np.sqrt(np.bincount(rows_Z, texts.values_Z**2, len(texts)))
        lengths_Q = np.linalg.norm(queries_QE, axis=1)
        scores_QN /= np.maximum(lengths_N, 1e-12) * np.maximum(lengths_Q, 1e-12)[:, None]
    return scores_QN
