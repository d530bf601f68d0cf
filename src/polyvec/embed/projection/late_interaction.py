"""Late interaction: the similarity of texts that have a vector for each token (MaxSim).

N and M texts, T tokens of all texts of a side, E numbers a vector.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyvec.errors import InputError, ShapeError, known
from polyvec.interfaces import MultiVectors

SIMILARITIES = ("maxsim", "meanmaxsim")
# Similarities of tokens that are in memory at a time.
BLOCK_ELEMENTS = 2**24
# Of a document without tokens: below any other, and finite, as in sentence-transformers.
EMPTY_DOCUMENT = -1e9


def max_similarities(queries: Any, documents: Any, name: str = "maxsim") -> Tensor:
    """Score of every query with every document, float32 [N, M].

    "maxsim" is the sum over the query's tokens of the largest dot product with a token of the
    document (ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832); "meanmaxsim" the mean. Texts
    are MultiVectors, a list of [tokens, E], or one such array.
    """
    check_similarity(name)
    a, b = as_multi_vectors(queries), as_multi_vectors(documents)
    _check_sizes(a, b)
    out_NM = np.full((len(a), len(b)), EMPTY_DOCUMENT, np.float32)
    if len(a.values_TE):
        for first, last in _blocks(b, len(a.values_TE)):
            out_NM[:, first:last] = _block(a, b, first, last)
    out_NM = _averaged(out_NM, a, name)
    return torch.from_numpy(out_NM)


def max_similarity_pairs(queries: Any, documents: Any, name: str = "maxsim") -> Tensor:
    """Score of each query with the document beside it, float32 [N]."""
    a, b = as_multi_vectors(queries), as_multi_vectors(documents)
    if len(a) != len(b):
        raise ShapeError(f"similarity_pairwise of {len(a)} and {len(b)} texts")
    scores = [max_similarities([a[i]], [b[i]], name)[0, 0] for i in range(len(a))]
    return torch.stack(scores) if scores else torch.zeros(0)


def as_multi_vectors(texts: Any) -> MultiVectors:
    """Texts as MultiVectors, float32; one array [tokens, E] is one text.

    Raises ShapeError for arrays of another shape, and InputError for NaN, infinity and what is
    no array.
    """
    if not isinstance(texts, MultiVectors):
        several = isinstance(texts, list | tuple) or getattr(texts, "ndim", 2) == 3
        arrays = [_array(each) for each in (texts if several else [texts])]
        sizes = {each.shape[1] for each in arrays if each.ndim == 2}
        if any(each.ndim != 2 for each in arrays) or len(sizes) > 1:
            shapes = sorted({each.shape for each in arrays})
            raise ShapeError(
                f"texts have arrays of shapes {shapes[:4]}, expected [tokens, E] of one E"
            )
        texts = MultiVectors.of(arrays, sizes.pop() if sizes else 0)
    wrong = np.flatnonzero(~np.isfinite(texts.values_TE).all(axis=1))
    if len(wrong):
        row = int(np.searchsorted(texts.offsets, wrong[0], side="right")) - 1
        raise InputError(f"the vectors of text {row} hold NaN or infinity")
    return texts


def check_similarity(name: str) -> None:
    """Raises InputError for a similarity that several vectors a text do not have."""
    if name not in SIMILARITIES:
        raise InputError(
            f"similarity {name!r} is not known for several vectors a text."
            + known(name, SIMILARITIES)
        )


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().float().cpu()
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError):
        raise InputError(
            "similarity takes the vectors of texts, arrays [tokens, E], got "
            f"{type(values).__name__}"
        ) from None


def _check_sizes(a: MultiVectors, b: MultiVectors) -> None:
    if len(a) and len(b) and a.dimension != b.dimension:
        raise ShapeError(f"queries have {a.dimension} dimensions, documents {b.dimension}")


def _blocks(texts: MultiVectors, num_queries: int) -> Iterator[tuple[int, int]]:
    """Runs of texts, as first and last, whose token similarities fit into a block."""
    most = max(1, BLOCK_ELEMENTS // num_queries)
    first = 0
    while first < len(texts):
        end = texts.offsets[first] + most
        last = int(np.searchsorted(texts.offsets, end, side="right")) - 1
        last = max(first + 1, last)
        yield first, last
        first = last


def _block(a: MultiVectors, b: MultiVectors, first: int, last: int) -> np.ndarray:
    offsets = b.offsets[first : last + 1]
    lengths = np.diff(offsets)
    out = np.full((len(a), last - first), EMPTY_DOCUMENT, np.float32)
    full = np.flatnonzero(lengths)
    if not len(full):
        return out
    values = b.values_TE[offsets[0] : offsets[-1]]
    # reduceat takes the element itself for an empty stretch, so empty texts are left out.
    token_scores = a.values_TE @ values.T
    best = np.maximum.reduceat(token_scores, offsets[:-1][full] - offsets[0], axis=1)
    queries = np.flatnonzero(np.diff(a.offsets))
    sums = np.zeros((len(a), len(full)), np.float32)
    sums[queries] = np.add.reduceat(best, a.offsets[:-1][queries], axis=0)
    out[:, full] = sums
    return out


def _averaged(scores_NM: np.ndarray, queries: MultiVectors, name: str) -> np.ndarray:
    if name != "meanmaxsim":
        return scores_NM
    lengths = np.diff(queries.offsets).clip(min=1)
    means: np.ndarray = (scores_NM / lengths[:, None]).astype(np.float32)
    return means
