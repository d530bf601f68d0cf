"""Exact neighbours by matrix product, in blocks of bounded memory."""

import numpy as np
import torch

from polyvec.embed.projection import similarity_matrix
from polyvec.errors import InputError, ShapeError

BLOCK = 32_768


def top_k(
    queries_QE: np.ndarray, documents_NE: np.ndarray, k: int, similarity: str = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of each query's nearest documents, best first, both [Q, min(k, N)].

    Equal scores come in the order of their rows.
    """
    if queries_QE.ndim != 2 or queries_QE.shape[1:] != documents_NE.shape[1:]:
        raise ShapeError(
            f"queries {queries_QE.shape} and documents {documents_NE.shape} do not fit"
        )
    if k < 1:
        raise InputError(f"top_k must be at least 1, got {k}")
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
