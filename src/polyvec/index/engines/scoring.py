"""Exact scores of queries with stored vectors of every form, in numpy.

Q queries, N texts, E numbers a vector, Z numbers that are not zero, T tokens.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from polyvec.embed.projection.late_interaction import max_similarities
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
    if isinstance(queries, MultiVectors) and isinstance(texts, MultiVectors):
        return max_sim(queries, texts, similarity)
    if similarity not in SIMILARITIES:
        raise InputError(
            f"similarity {similarity!r} is not known.{known(similarity, SIMILARITIES)}"
        )
    if isinstance(queries, DenseVectors) and isinstance(texts, DenseVectors):
        return _matrix(queries.values_NE, texts.values_NE, similarity)
    if isinstance(queries, SparseVectors) and isinstance(texts, SparseVectors):
        return _sparse(queries, texts, similarity)
    raise InputError(f"{type(queries).__name__} cannot be compared with {type(texts).__name__}")


def _matrix(a_NE: np.ndarray, b_ME: np.ndarray, similarity: str) -> np.ndarray:
    # Copies: torch warns of read-only arrays, such as Arrow's.
    a, b = (torch.from_numpy(np.array(each, np.float32)) for each in (a_NE, b_ME))
    return similarity_matrix(a, b, similarity).numpy()


def max_sim(queries: MultiVectors, texts: MultiVectors, similarity: str) -> np.ndarray:
    """Scores [Q, N] of late interaction: tokens are compared by cosine or dot ("maxsim")."""
    if similarity == "cosine":
        queries, texts = _unit(queries), _unit(texts)
    name = "maxsim" if similarity in ("cosine", "dot") else similarity
    return max_similarities(queries, texts, name).numpy()


def _unit(vectors: MultiVectors) -> MultiVectors:
    lengths_T1 = np.linalg.norm(vectors.values_TE, axis=1, keepdims=True)
    return MultiVectors(vectors.values_TE / np.maximum(lengths_T1, 1e-12), vectors.offsets)


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
        or [np.empty(len(texts), np.float64)]
    )[: len(queries)].astype(np.float32)
    if similarity == "cosine":
        lengths_N = np.sqrt(np.bincount(rows_Z, texts.values_Z**2, len(texts)))
        lengths_Q = np.linalg.norm(queries_QE, axis=1)
        scores_QN /= np.maximum(lengths_N, 1e-12) * np.maximum(lengths_Q, 1e-12)[:, None]
    return scores_QN
