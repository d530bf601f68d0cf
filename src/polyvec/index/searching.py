"""From queries to hits: dense, by words, both fused, and reranked.

Q queries, N texts, E numbers a vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from polyvec.embed.projection.similarity import SIMILARITIES
from polyvec.errors import InputError, ModelError, known
from polyvec.index import exact as exact_search
from polyvec.index.adding import joined_rows
from polyvec.index.engines.interface import Candidate, Engine, Form
from polyvec.index.filters import Filter, matches
from polyvec.index.fusion import min_max_fusion, reciprocal_rank_fusion
from polyvec.index.records import Component, Hit
from polyvec.interfaces import (
    DenseVectors,
    MultiVectors,
    PromptChoice,
    RunOptions,
    SparseVectors,
    TextEncoder,
    Truncate,
    Vectors,
)

Mode = Literal["dense", "words", "hybrid"]
MODES: tuple[Mode, ...] = ("dense", "words", "hybrid")
Fusion = Literal["rank", "score"]
DEPTH = 100  # texts of each component that are fused
MOST = 2**31 - 1  # texts that an engine is asked for; more overflow their numbers
RERANKED = 50  # best texts that a reranker reads
OWN_SIMILARITIES = ("maxsim", "meanmaxsim")  # of multi-vectors, which engines know


class Ranker(Protocol):
    """What orders texts anew: a `polyvec.rerank.reranker.Reranker`."""

    def rank(self, query: str, documents: Sequence[str], /) -> list[tuple[int, float]]:
        """Places of the documents with their scores, the best first."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How to search; `Index.search` says what each means."""

    top_k: int = 10
    filter: Filter | None = None
    mode: Mode = "dense"
    fusion: Fusion = "rank"
    weights: tuple[float, float] = (1.0, 1.0)
    depth: int = DEPTH
    exact: bool = False
    rerank: Ranker | None = None
    rerank_depth: int = RERANKED

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode {self.mode!r} is not known.{known(self.mode, MODES)}")
        if self.fusion not in ("rank", "score"):
            raise InputError(
                f"fusion {self.fusion!r} is not known.{known(self.fusion, ('rank', 'score'))}"
            )
        for name in ("top_k", "depth", "rerank_depth"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} must be at least 1, got {value!r}")


# A text that was found, and how; filled in component by component.
Found = dict[str, tuple[Candidate, list[Component]]]


def search(
    engine: Engine, queries: list[str], vectors: Vectors | None, asked: Asked, embedder: Any
) -> list[list[tuple[Hit, list[Component]]]]:
    """Hits of each query, best first, with the components that found them."""
    width = asked.top_k
    if asked.mode == "hybrid":
        width = max(width, asked.depth)
    if asked.rerank is not None:
        width = max(width, asked.rerank_depth)
    width = min(width, MOST)
    rankings: dict[str, list[list[Candidate]]] = {}
    if vectors is not None:
        rankings["dense"] = _near(engine, vectors, width, asked, embedder)
    if asked.mode != "dense":
        rankings["words"] = engine.words(queries, width, filter=asked.filter)
    out = []
    for row, query in enumerate(queries):
        found, order = _fused({name: each[row] for name, each in rankings.items()}, asked)
        if asked.rerank is not None:
            order = _reranked(query, order, found, asked)
        hits = [(found[name], score) for name, score in order[: asked.top_k]]
        out.append(
            [
                (Hit(each.id, score, each.text, each.metadata), components)
                for (each, components), score in hits
            ]
        )
    return out


def _near(
    engine: Engine, vectors: Vectors, k: int, asked: Asked, embedder: Any
) -> list[list[Candidate]]:
    similarity = engine.description.similarity
    if similarity in SIMILARITIES or similarity in OWN_SIMILARITIES:
        return engine.near(vectors, k, filter=asked.filter, exact=asked.exact)
    # The model's own function scores all texts at once, so all are read.
    rows = joined_rows(list(engine.scan()))
    passing = [
        row
        for row in range(len(rows))
        if asked.filter is None or matches(asked.filter, rows.metadata[row])
    ]
    if not passing:
        return [[] for _ in range(len(vectors))]
    documents_NE = rows.vectors["dense"].to_dense()[passing]
    scores_QK, places_QK = exact_search.top_k(
        vectors.to_dense(), documents_NE, k, lambda a, b: np.asarray(embedder.similarity(a, b))
    )
    return [
        [
            Candidate(rows.ids[row], score, rows.texts[row], rows.metadata[row])
            for score, row in zip(scores, (passing[place] for place in places), strict=True)
        ]
        for scores, places in zip(scores_QK.tolist(), places_QK.tolist(), strict=True)
    ]


def _fused(
    rankings: Mapping[str, Sequence[Candidate]], asked: Asked
) -> tuple[Found, list[tuple[str, float]]]:
    """All that were found, and their ids with a score each, best first."""
    found: Found = {}
    for name, candidates in rankings.items():
        for rank, each in enumerate(candidates, start=1):
            found.setdefault(each.id, (each, []))[1].append(Component(name, rank, each.score))
    if len(rankings) == 1:
        (candidates,) = rankings.values()
        return found, [(each.id, each.score) for each in candidates]
    if asked.fusion == "rank":
        ids = [[each.id for each in candidates] for candidates in rankings.values()]
        order = reciprocal_rank_fusion(ids, weights=asked.weights)
    else:
        order = _by_scores(rankings, found, asked.weights)
    for rank, (name, score) in enumerate(order, start=1):
        found[name][1].append(Component("fused", rank, score))
    return found, order


def _by_scores(
    rankings: Mapping[str, Sequence[Candidate]], found: Found, weights: tuple[float, float]
) -> list[tuple[str, float]]:
    """Weighted sums of scores, each component's scaled to 0 ... 1 over what it found."""
    names, scores, masks = list(found), [], []
    place_of = {name: place for place, name in enumerate(names)}
    for candidates in rankings.values():
        score_1N, mask_1N = np.zeros((1, len(names)), np.float32), np.zeros((1, len(names)), bool)
        for each in candidates:
            score_1N[0, place_of[each.id]], mask_1N[0, place_of[each.id]] = each.score, True
        scores.append(score_1N)
        masks.append(mask_1N)
    if not names:
        return []
    (fused_N,) = min_max_fusion(scores, weights, masks)
    order = np.argsort(-fused_N, kind="stable").tolist()
    return [(names[place], float(fused_N[place])) for place in order]


def _reranked(
    query: str, order: Sequence[tuple[str, float]], found: Found, asked: Asked
) -> list[tuple[str, float]]:
    """The best texts in the reranker's order; those that it did not read are left out."""
    assert asked.rerank is not None
    names = [name for name, _ in order[: max(asked.rerank_depth, asked.top_k)]]
    ranked = asked.rerank.rank(query, [found[name][0].text for name in names])
    for rank, (place, score) in enumerate(ranked, start=1):
        found[names[place]][1].append(Component("reranked", rank, score))
    return [(names[place], score) for place, score in ranked]


def query_vectors(
    embedder: TextEncoder,
    queries: list[str],
    form: Form,
    dimension: int,
    truncate: Truncate,
    choice: PromptChoice,
) -> Vectors:
    """The queries' vectors; ModelError for another shape than the index needs."""
    given: dict[str, Any] = {key: value for key, value in choice.items() if value is not None}
    name = type(embedder).__name__
    if form != "dense":
        asked: Any = {"role": "query", **given}
        vectors, _ = embedder.encode_vectors(
            queries, options=RunOptions(truncate=truncate), **asked
        )
    else:
        if truncate != "warn":
            given["truncate"] = truncate
        # encode_query is a model's own way to read queries, unless the call says another.
        found = (
            embedder.encode(queries, **{"role": "query", **given})
            if given
            else (embedder.encode_query(queries))
        )
        vectors = DenseVectors(np.asarray(found, np.float32).reshape(len(np.asarray(found)), -1))
    wanted = {"dense": DenseVectors, "sparse": SparseVectors, "multi": MultiVectors}[form]
    if not isinstance(vectors, wanted) or len(vectors) != len(queries):
        raise ModelError(
            f"{name} gave {len(vectors)} {type(vectors).__name__} for {len(queries)} queries"
        )
    if vectors.dimension != dimension:
        raise ModelError(
            f"{name} gave query vectors of {vectors.dimension} dimensions, expected {dimension}"
        )
    return vectors
