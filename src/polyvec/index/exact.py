"""Exact nearest neighbours by matrix product, in blocks of bounded memory.

Q queries, N documents, K neighbours, E numbers a vector.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.projection.similarity import SIMILARITIES, similarity_matrix
from polyvec.errors import DataError, InputError, ShapeError, known

QUERY_BLOCK = 512  # queries scored at a time
BLOCK = 32_768  # documents scored at a time: 64 MiB of scores with as many queries
SCORES = QUERY_BLOCK * BLOCK  # scores held at a time where all documents are scored at once


class NotFiniteError(DataError):
    """A query and a document, by their rows, whose similarity is NaN or infinite."""

    def __init__(self, query: int, document: int) -> None:
        super().__init__(
            f"the similarity of query {query} and document {document} is NaN or infinite: one of "
            "the vectors holds NaN or infinity; encode the texts again"
        )
        self.query, self.document = query, document


class Rows(Protocol):
    """Documents [N, E], read in slices: an array, or a file that is checked as it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> Any: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


def inverse_lengths(documents_NE: Rows) -> np.ndarray:
    """1 over each document's length, float32 [N], which `top_k` takes to compute none again."""
    found_N = np.empty(len(documents_NE), np.float32)
    for start in range(0, len(documents_NE), BLOCK):
        block_NE = np.asarray(documents_NE[start : start + BLOCK], np.float32)
        with np.errstate(over="ignore"):
            lengths_N = np.linalg.norm(block_NE, axis=1)
        # As torch's normalize: a vector of zeros has similarity 0 with all.
        found_N[start : start + BLOCK] = 1 / np.maximum(lengths_N, 1e-12)
    return found_N


# Scores [Q, N] of queries [Q, E] with documents [N, E]; larger is more similar.
Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]


def top_k(
    queries_QE: np.ndarray,
    documents_NE: Rows,
    k: int,
    similarity: str | Similarity = "cosine",
    *,
    skip_own_row: bool = False,
    inverse_lengths_N: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of each query's nearest documents, best first, both [Q, min(k, N)].

    Equal scores come in the order of their rows. `similarity` is a name, or a function, which is
    given all documents at once because its scores may depend on them all. With `skip_own_row`,
    query i is document i and not among its own neighbours. `inverse_lengths_N`: those of the
    documents, of which cosine then makes no normalised copies.
    Raises ShapeError for vectors of different widths, InputError for a k below 1 or an unknown
    similarity or quantised vectors, NotFiniteError for a similarity that is NaN or infinite.
    """
    fits = queries_QE.ndim == documents_NE.ndim == 2
    if not fits or queries_QE.shape[1] != documents_NE.shape[1]:
        raise ShapeError(
            f"queries {queries_QE.shape} and documents {documents_NE.shape}: expected two matrices "
            "of equal width; encode both with the same model"
        )
    for what, vectors in (("queries", queries_QE), ("documents", documents_NE)):
        if vectors.dtype in (np.int8, np.uint8):
            raise InputError(
                f"{what} are quantised ({vectors.dtype}), whose products are no similarity; "
                "dequantise them first, or encode with precision='float32'"
            )
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise InputError(f"top_k must be at least 1, got {k!r}")
    if isinstance(similarity, str) and similarity not in SIMILARITIES:
        raise InputError(
            f"similarity {similarity!r} is not known.{known(similarity, SIMILARITIES)}"
        )
    num_documents = len(documents_NE)
    width = max(0, min(k, num_documents - skip_own_row))
    scores_QK = np.zeros((len(queries_QE), width), np.float32)
    rows_QK = np.zeros((len(queries_QE), width), np.int64)
    step = QUERY_BLOCK if isinstance(similarity, str) else max(1, SCORES // max(1, num_documents))
    for start in range(0, len(queries_QE) if width else 0, step):
        part = slice(start, start + step)
        if similarity == "cosine" and inverse_lengths_N is not None:
            blocks = _cosines(queries_QE[part], documents_NE, inverse_lengths_N)
        else:
            blocks = _scored(queries_QE[part], documents_NE, similarity)
        own_row = start if skip_own_row else None
        scores_QK[part], rows_QK[part] = _best_of(blocks, width, start, own_row)
    return scores_QK, rows_QK


def _scored(
    queries_QE: np.ndarray, documents_NE: Rows, similarity: str | Similarity
) -> Iterator[Tensor]:
    """Scores of the queries with each block of documents, [Q, at most BLOCK], or with all."""
    if not isinstance(similarity, str):
        # A copy, because own scores are overwritten; it keeps the function's own precision.
        yield torch.from_numpy(np.array(similarity(queries_QE, documents_NE[:])))
        return
    queries = torch.from_numpy(np.ascontiguousarray(queries_QE, np.float32))
    for start in range(0, len(documents_NE), BLOCK):
        # A copy, because torch warns of a read-only array such as an index's memmap.
        block = torch.from_numpy(np.array(documents_NE[start : start + BLOCK], np.float32))
        yield similarity_matrix(queries, block, similarity)


def _cosines(
    queries_QE: np.ndarray, documents_NE: Rows, inverse_lengths_N: np.ndarray
) -> Iterator[Tensor]:
    """Cosines of the queries with each block of documents, which are read where they are."""
    queries_QE = queries_QE.astype(np.float32) * inverse_lengths(queries_QE)[:, None]
    for start in range(0, len(documents_NE), BLOCK):
        part = slice(start, start + BLOCK)
        block_NE = np.asarray(documents_NE[part], np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN is found, and named, later
            yield torch.from_numpy((queries_QE @ block_NE.T) * inverse_lengths_N[part])


def _best_of(
    blocks: Iterator[Tensor], k: int, first_query: int, own_row: int | None
) -> tuple[Tensor, Tensor]:
    """The k best over all blocks; `own_row` is the document that is the first query, if any."""
    best_scores, best_rows, start = torch.empty(0), torch.empty(0, dtype=torch.long), 0
    for scores in blocks:
        columns = torch.arange(start, start + scores.shape[1])
        if own_row is not None:
            own = torch.arange(own_row, own_row + len(scores))[:, None]
            scores[columns == own] = -torch.inf
        rows = columns.expand_as(scores)
        if start:
            scores, rows = torch.cat([best_scores, scores], 1), torch.cat([best_rows, rows], 1)
        best_scores, best_rows = _best(scores, rows, k)
        start += len(columns)
        # Here, because NaN sorts first and would hide the rest.
        _check_finite(best_scores[:, :1], best_rows, first_query, but=-torch.inf)
    _check_finite(best_scores, best_rows, first_query)
    return best_scores, best_rows


def _check_finite(
    scores_QK: Tensor, rows_QK: Tensor, first_query: int, *, but: float | None = None
) -> None:
    """Raises NotFiniteError for a score that is NaN or infinite; `but` is one that may occur."""
    wrong_QK = ~scores_QK.isfinite()
    if but is not None:
        wrong_QK &= scores_QK != but
    if bool(wrong_QK.any()):
        query, place = wrong_QK.nonzero()[0].tolist()
        raise NotFiniteError(first_query + query, int(rows_QK[query, place]))


def _best(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns of each row, in order; a stable sort keeps ties by row number."""
    if scores.shape[1] > 4 * k:
        # Every column as good as the k-th survives, so that ties at the border stay exact; NaN
        # survives too, and sorts first.
        kth = scores.topk(k, dim=1).values[:, -1:]
        keep = ~(scores < kth)
        width = int(keep.sum(dim=1).max())
        order = keep.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :width]
        scores, rows = scores.gather(1, order), rows.gather(1, order)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), rows.gather(1, order)
