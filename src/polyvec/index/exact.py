"""Exact neighbours by matrix product, in blocks of bounded memory."""

import numpy as np
import torch

from polyvec.embed.projection.similarity import similarity_matrix
from polyvec.errors import InputError, ShapeError

BLOCK = 32_768  # documents scored at a time
QUERY_BLOCK = 512  # queries scored at a time: 64 MiB of scores a block


def top_k(
    queries_QE: np.ndarray, documents_NE: np.ndarray, k: int, similarity: str = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of each query's nearest documents, best first, both [Q, min(k, N)].

    Equal scores come in the order of their rows.
    Raises ShapeError if the two do not fit, InputError for a k below 1.
    """
    fits = queries_QE.ndim == documents_NE.ndim == 2
    if not fits or queries_QE.shape[1] != documents_NE.shape[1]:
        raise ShapeError(
            f"queries {queries_QE.shape} and documents {documents_NE.shape} do not fit"
        )
    if k < 1:
        raise InputError(f"top_k must be at least 1, got {k}")
    width = min(k, len(documents_NE))
    scores_QK = np.empty((len(queries_QE), width), np.float32)
    rows_QK = np.empty((len(queries_QE), width), np.int64)
    for start in range(0, len(queries_QE), QUERY_BLOCK):
        part = slice(start, start + QUERY_BLOCK)
        scores_QK[part], rows_QK[part] = _search(queries_QE[part], documents_NE, k, similarity)
    return scores_QK, rows_QK


def _search(
    queries_QE: np.ndarray, documents_NE: np.ndarray, k: int, similarity: str
) -> tuple[np.ndarray, np.ndarray]:
    queries = torch.from_numpy(np.ascontiguousarray(queries_QE, np.float32))
    best_scores = torch.empty(len(queries), 0)
    best_rows = torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(documents_NE), BLOCK):
        block = torch.from_numpy(np.array(documents_NE[start : start + BLOCK], np.float32))
        scores = similarity_matrix(queries, block, similarity)
        rows = torch.arange(start, start + len(block)).expand_as(scores)
        scores, rows = torch.cat([best_scores, scores], 1), torch.cat([best_rows, rows], 1)
        best_scores, best_rows = _best(scores, rows, k)
    return best_scores.numpy(), best_rows.numpy()


def _best(scores: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best columns of each row, in order; a stable sort keeps ties by row number."""
    if scores.shape[1] > 4 * k:
        # Every column as good as the k-th survives, so that ties at the border stay exact.
        kth = scores.topk(k, dim=1).values[:, -1:]
        width = int((scores >= kth).sum(dim=1).max())
        keep = (scores >= kth).to(torch.int8).sort(dim=1, descending=True, stable=True).indices
        scores, rows = scores.gather(1, keep[:, :width]), rows.gather(1, keep[:, :width])
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), rows.gather(1, order)
