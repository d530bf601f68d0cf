"""sentence-transformers' `util` over polyvec's own similarities, search and quantisation.

What is not defined here (mine_hard_negatives, maxsim, http_get, ...) is sentence-transformers'
own and works with our models; it is imported when first used. N, M vectors of E numbers.
"""

import heapq
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from enum import StrEnum
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.embed.inputs.contract import check_count
from polyvec.embed.projection.quantization import PRECISIONS, Calibration, quantize
from polyvec.embed.projection.similarity import similarity_matrix, similarity_pairs
from polyvec.errors import InputError, ShapeError, known
from polyvec.sentence_transformers.installed import names_of

__getattr__ = names_of("sentence_transformers.util")
__path__: list[str] = []  # a package, so that `util.quantization` and others are found (paths.py)

Score = Callable[[Any, Any], Tensor]
FEW = 100  # vectors; ranges of fewer are of little use


def as_tensor(vectors: Any) -> Tensor:
    """Vectors of any common form as one tensor; sparse ones stay sparse."""
    if isinstance(vectors, Tensor):
        return vectors
    if isinstance(vectors, list | tuple):
        if any(isinstance(each, Tensor) for each in vectors):
            return torch.stack([torch.as_tensor(each) for each in vectors])
        arrays = any(isinstance(each, np.ndarray) for each in vectors)
        vectors = np.asarray(vectors) if arrays else np.asarray(vectors, np.float32)
    try:
        return torch.from_numpy(np.require(vectors, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise InputError(f"expected vectors, got {type(vectors).__name__} ({error})") from None


def _matrix(vectors: Any) -> Tensor:
    found = as_tensor(vectors)
    found = found.to_dense() if found.layout != torch.strided else found
    found = found if found.is_floating_point() else found.float()
    return found[None] if found.ndim == 1 else found


def _on_one_device(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    a_NE, b_ME = _matrix(a), _matrix(b)
    return a_NE, b_ME.to(a_NE.device)


def _scores(name: str, a: Any, b: Any) -> Tensor:
    return similarity_matrix(*_on_one_device(a, b), name)


def by_pairs(a: Tensor, b: Tensor, scores: Score) -> Tensor:
    """Scores [N] of vectors [N, E] and those beside them, in the shape that `a` and `b` have.

    Two single vectors give a scalar, and one vector stands beside each of several. Raises
    ShapeError for other numbers that differ.
    """
    if a.layout != torch.strided or b.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-1]:
        raise ShapeError(
            f"similarity: vectors of shapes {tuple(a.shape)} and {tuple(b.shape)}, expected equal "
            "widths"
        )
    try:
        a, b = torch.broadcast_tensors(a, b.to(a.device))
    except RuntimeError:
        raise ShapeError(
            f"similarity: {tuple(a.shape[:-1])} vectors and {tuple(b.shape[:-1])}, expected as many"
        ) from None
    width = a.shape[-1]
    count = math.prod(a.shape[:-1])
    return scores(a.reshape(count, width), b.reshape(count, width)).reshape(a.shape[:-1])


def _pair_scores(name: str, a: Any, b: Any) -> Tensor:
    return by_pairs(
        as_tensor(a), as_tensor(b), lambda x, y: similarity_pairs(*_on_one_device(x, y), name)
    )


def cos_sim(a: Any, b: Any) -> Tensor:
    """Cosine of every a with every b, [N, M]."""
    return _scores("cosine", a, b)


def dot_score(a: Any, b: Any) -> Tensor:
    """Dot product of every a with every b, [N, M]."""
    return _scores("dot", a, b)


def euclidean_sim(a: Any, b: Any) -> Tensor:
    """Negative Euclidean distance of every a to every b, [N, M]."""
    return _scores("euclidean", a, b)


def manhattan_sim(a: Any, b: Any) -> Tensor:
    """Negative Manhattan distance of every a to every b, [N, M]."""
    return _scores("manhattan", a, b)


def pairwise_cos_sim(a: Any, b: Any) -> Tensor:
    """Cosine of each a with the b beside it, [N]."""
    return _pair_scores("cosine", a, b)


def pairwise_dot_score(a: Any, b: Any) -> Tensor:
    """Dot product of each a with the b beside it, [N]."""
    return _pair_scores("dot", a, b)


def pairwise_euclidean_sim(a: Any, b: Any) -> Tensor:
    """Negative Euclidean distance of each a to the b beside it, [N]."""
    return _pair_scores("euclidean", a, b)


def pairwise_manhattan_sim(a: Any, b: Any) -> Tensor:
    """Negative Manhattan distance of each a to the b beside it, [N]."""
    return _pair_scores("manhattan", a, b)


pytorch_cos_sim = cos_sim


class SimilarityFunction(StrEnum):
    """The names of similarities; also strings, so that sentence-transformers takes them."""

    COSINE = "cosine"
    DOT_PRODUCT = "dot"
    DOT = "dot"
    EUCLIDEAN = "euclidean"
    MANHATTAN = "manhattan"
    MAXSIM = "maxsim"
    MEAN_MAXSIM = "meanmaxsim"

    @staticmethod
    def to_similarity_fn(similarity_function: Any) -> Score:
        """The function of two sets of vectors; InputError for an unknown name."""
        return _by_name(similarity_function, _MATRICES, ("maxsim", "mean_maxsim"))

    @staticmethod
    def to_similarity_pairwise_fn(similarity_function: Any) -> Score:
        """The function of vectors side by side; InputError for an unknown name."""
        late = ("maxsim_pairwise", "mean_maxsim_pairwise")
        return _by_name(similarity_function, _PAIRS, late)

    @staticmethod
    def possible_values() -> list[str]:
        """All names."""
        return [each.value for each in SimilarityFunction]


_MATRICES: dict[str, Score] = {
    "cosine": cos_sim,
    "dot": dot_score,
    "euclidean": euclidean_sim,
    "manhattan": manhattan_sim,
}
_PAIRS: dict[str, Score] = {
    "cosine": pairwise_cos_sim,
    "dot": pairwise_dot_score,
    "euclidean": pairwise_euclidean_sim,
    "manhattan": pairwise_manhattan_sim,
}


def _by_name(name: Any, table: Mapping[str, Score], late: tuple[str, str]) -> Score:
    found = getattr(name, "value", name)
    if found in table:
        return table[found]
    for each, function in zip(("maxsim", "meanmaxsim"), late, strict=True):
        if found == each:
            return cast(Score, __getattr__(function))
    values = SimilarityFunction.possible_values()
    raise InputError(f"similarity {found!r} is not known.{known(found, values)}")


def normalize_embeddings(embeddings: Tensor) -> Tensor:
    """The vectors at length 1, in the layout they have."""
    if embeddings.layout != torch.strided:
        return F.normalize(embeddings.to_dense(), dim=-1).to_sparse()
    return F.normalize(embeddings, dim=-1)


def truncate_embeddings(embeddings: Any, truncate_dim: int | None) -> Any:
    """The first `truncate_dim` numbers of each vector."""
    return embeddings[..., :truncate_dim]


def select_max_active_dims(embeddings: Any, max_active_dims: int | None) -> Any:
    """Dense vectors with their numbers of largest size only; the others are zero."""
    if max_active_dims is None:
        return embeddings
    check_count("max_active_dims", max_active_dims)
    found = as_tensor(embeddings)
    count = min(max_active_dims, found.shape[-1])
    places = found.abs().topk(count, dim=-1).indices
    return torch.zeros_like(found).scatter(-1, places, found.gather(-1, places))


def batch_to_device(
    batch: MutableMapping[str, Any], target_device: Any
) -> MutableMapping[str, Any]:
    """The same mapping with its tensors on the device."""
    for name, value in batch.items():
        if isinstance(value, Tensor):
            batch[name] = value.to(target_device)
    return batch


def quantize_embeddings(
    embeddings: Any,
    precision: str,
    ranges: np.ndarray | None = None,
    calibration_embeddings: np.ndarray | None = None,
) -> Any:
    """Vectors in another precision.

    Ranges of int8 and uint8 come from `ranges` [2, E], from the calibration vectors, or from the
    vectors themselves, with a warning: then vectors of two calls are not comparable. Raises
    InputError for ranges of a single vector.
    """
    if precision not in PRECISIONS:
        raise InputError(f"Precision {precision!r} is not supported.{known(precision, PRECISIONS)}")
    if isinstance(embeddings, list) and not embeddings:
        return []
    if isinstance(embeddings, list) and np.ndim(embeddings[0]) == 2:
        return _quantized_matrices(embeddings, precision, ranges, calibration_embeddings)
    values = _numbers(embeddings)
    if not len(values):
        return (
            values
            if precision == "float32"
            else quantize(values, cast(Any, precision), _no_ranges(values))
        )
    calibration = None
    if precision in ("int8", "uint8"):
        calibration = _calibration(values, ranges, calibration_embeddings)
    return quantize(values, cast(Any, precision), calibration)


def _numbers(embeddings: Any) -> np.ndarray:
    tensor = as_tensor(embeddings).detach().cpu()
    if not tensor.is_floating_point() and len(tensor):
        raise InputError(f"embeddings to quantize must be float, got {tensor.dtype}")
    return tensor.float().numpy()


def _no_ranges(values: np.ndarray) -> Calibration:
    return Calibration(np.zeros((2, values.shape[-1]), np.float32), 0)


def _calibration(values: np.ndarray, ranges: Any, sample: Any) -> Calibration:
    if ranges is not None:
        return Calibration(np.asarray(ranges, np.float32), 0)
    if sample is None:
        sample = values
        if values.ndim == 1 or len(values) == 1:
            raise InputError(
                "ranges cannot be computed from a single embedding; pass ranges= or "
                "calibration_embeddings="
            )
        if len(values) < FEW:
            warnings.warn(
                f"the ranges are those of {len(values)} embeddings; pass ranges= or "
                "calibration_embeddings= so that other calls give comparable ones",
                stacklevel=4,
            )
    sample = _numbers(sample)
    return Calibration(np.stack([sample.min(axis=0), sample.max(axis=0)]), len(sample))


def _quantized_matrices(matrices: Any, precision: str, ranges: Any, sample: Any) -> list[Any]:
    """Several matrices, with the same ranges."""
    arrays = [_numbers(each) for each in matrices]
    if precision in ("int8", "uint8") and ranges is None:
        whole = np.concatenate(arrays)
        if len(whole):
            ranges = _calibration(whole, None, sample).ranges_2E
    return [quantize_embeddings(each, precision, ranges, sample) for each in arrays]


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500_000,
    top_k: int = 10,
    score_function: Score = cos_sim,
) -> list[list[dict[str, Any]]]:
    """The nearest `top_k` of the corpus for each query, best first: corpus_id and score."""
    queries, corpus = as_tensor(query_embeddings), as_tensor(corpus_embeddings)
    queries = queries[None] if queries.ndim == 1 else queries
    queries = queries.to(corpus.device)
    best = _best(queries, corpus, (query_chunk_size, corpus_chunk_size), top_k, score_function)
    return [
        [{"corpus_id": place, "score": score} for place, score in row]
        for rows in best
        for row in rows
    ]


def _best(
    queries: Tensor, corpus: Tensor, sizes: tuple[int, int], top_k: int, score: Score
) -> Iterator[list[list[tuple[int, float]]]]:
    """For each block of queries their best (row of the corpus, score), best first."""
    check_count("top_k", top_k)
    for name, size in zip(("query_chunk_size", "corpus_chunk_size"), sizes, strict=True):
        check_count(name, size)
    for start in range(0, len(queries), sizes[0]):
        block = _rows(queries, start, start + sizes[0])
        values = torch.empty(len(block), 0, device=corpus.device)
        places = torch.empty(len(block), 0, dtype=torch.long, device=corpus.device)
        for first in range(0, len(corpus), sizes[1]):
            found = score(block, _rows(corpus, first, first + sizes[1])).detach()
            if found.shape[0] != len(block):
                raise ShapeError(f"the score function gave {tuple(found.shape)}")
            found = found.to_dense() if found.layout != torch.strided else found
            top = found.topk(min(top_k, found.shape[1]), dim=1)
            if not first:  # a second topk would change the order of equal scores
                values, places = top.values, top.indices
                continue
            values = torch.cat([values, top.values], dim=1)
            places = torch.cat([places, top.indices + first], dim=1)
            kept = values.topk(min(top_k, values.shape[1]), dim=1)
            values, places = kept.values, places.gather(1, kept.indices)
        yield [
            list(zip(ids, scores, strict=True))
            for ids, scores in zip(places.tolist(), values.tolist(), strict=True)
        ]


def _rows(vectors: Tensor, start: int, stop: int) -> Tensor:
    if vectors.layout == torch.strided:
        return vectors[start:stop]
    picked = torch.arange(start, min(stop, len(vectors)), device=vectors.device)
    return vectors.index_select(0, picked)


def information_retrieval(*positional: Any, **options: Any) -> list[list[dict[str, Any]]]:
    """The older name of `semantic_search`."""
    return semantic_search(*positional, **options)


def paraphrase_mining(
    model: Any,
    sentences: Sequence[str],
    show_progress_bar: bool = False,
    batch_size: int = 32,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: Score = cos_sim,
    truncate_dim: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
) -> list[list[Any]]:
    """The pairs of sentences that are most alike, as [score, i, j] with i < j, best first."""
    vectors = model.encode(
        sentences,
        show_progress_bar=show_progress_bar,
        batch_size=batch_size,
        convert_to_tensor=True,
        truncate_dim=truncate_dim,
        prompt_name=prompt_name,
        prompt=prompt,
    )
    return paraphrase_mining_embeddings(
        vectors, query_chunk_size, corpus_chunk_size, max_pairs, top_k, score_function
    )


def paraphrase_mining_embeddings(
    embeddings: Any,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: Score = cos_sim,
) -> list[list[Any]]:
    """`paraphrase_mining` of vectors; of each, `top_k` others are considered."""
    vectors, sizes = as_tensor(embeddings), (query_chunk_size, corpus_chunk_size)
    check_count("max_pairs", max_pairs)
    best: list[tuple[float, int, int]] = []  # a heap, the worst pair first
    among: set[tuple[int, int]] = set()
    row, worst = 0, -math.inf
    for block in _best(vectors, vectors, sizes, top_k + 1, score_function):
        for hits in block:
            for place, score in [hit for hit in hits if hit[0] != row][:top_k]:
                pair = (min(row, place), max(row, place))
                if pair in among or score <= worst:
                    continue
                among.add(pair)
                if len(best) < max_pairs:
                    heapq.heappush(best, (score, *pair))
                else:
                    worst, *out = heapq.heappushpop(best, (score, *pair))
                    among.discard((out[0], out[1]))
            row += 1
    # Equal scores stay in the heap's order, as sentence-transformers has them.
    return [[*each] for each in sorted(best, key=lambda each: -each[0])]


def community_detection(
    embeddings: Any,
    threshold: float = 0.75,
    min_community_size: int = 10,
    batch_size: int = 1024,
    show_progress_bar: bool = False,
) -> list[list[int]]:
    """Groups of vectors whose cosine with the group's centre is at least `threshold`.

    Rows, the centre first, then by falling similarity; the largest group first. A vector is in
    one group only, that of the centre with the most such neighbours.
    """
    if not len(embeddings):
        return []
    vectors = F.normalize(_matrix(embeddings), dim=-1)
    check_count("batch_size", batch_size)
    groups: list[tuple[int, np.ndarray]] = []
    for start in range(0, len(vectors), batch_size):
        scores = vectors[start : start + batch_size] @ vectors.T
        counts = (scores >= threshold).sum(dim=1)
        for row in (counts >= min_community_size).nonzero()[:, 0].tolist():
            near = scores[row].topk(int(counts[row])).indices.cpu().numpy()
            groups.append((start + row, near))
    groups.sort(key=lambda group: -len(group[1]))
    taken = np.zeros(len(vectors), bool)
    found: list[list[int]] = []
    for centre, near in groups:
        free = near[~taken[near]]
        if taken[centre] or len(free) < min_community_size:
            continue
        found.append([centre, *(free[free != centre]).tolist()])
        taken[found[-1]] = True
    return sorted(found, key=len, reverse=True)


def to_scipy_coo(x: Tensor) -> Any:
    """A sparse tensor [N, E] as scipy's coo_matrix."""
    from scipy.sparse import coo_matrix

    x = x.coalesce()
    values = x.values().cpu().float().numpy()
    return coo_matrix((values, x.indices().cpu().numpy()), shape=x.shape)
