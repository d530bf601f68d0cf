"""Rankings as matrices: search, measures of each query, and what reports show.

Q queries, K ranks, N documents, E vector dimensions. Rows are row numbers of
documents, -1 for none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from polyvec.embed.projection.similarity import SIMILARITIES
from polyvec.errors import DataError
from polyvec.evaluate.measures.ranking import CUTS
from polyvec.evaluate.outcome import Encoder, Item
from polyvec.evaluate.protocols.vectors import nearest
from polyvec.rerank.reranker import Reranker

RERANKED = 100  # documents of a query that a reranker reads
DEPTH = 1000  # documents in each query's ranking, as in trec_eval's MAP and MTEB's runs
SHOWN = 5  # documents that an item shows
SHOWN_CHARACTERS = 300
FAMILIES = ("ndcg", "map", "recall", "precision", "accuracy", "mrr")


@dataclass(frozen=True, slots=True)
class Queries:
    """Ids, texts, judgements and vectors [Q, E] of the queries, row by row."""

    ids: list[str]
    texts: list[str]
    qrels: list[Mapping[str, int]]
    vectors_QE: np.ndarray


@dataclass(frozen=True, slots=True)
class Documents:
    """Ids, texts and vectors [N, E] of the documents, row by row."""

    ids: list[str]
    texts: list[str]
    vectors_NE: np.ndarray
    row_of: dict[str, int]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents of each query, best first: scores and rows, [Q, K]; padded with -inf and -1."""

    scores_QK: np.ndarray
    rows_QK: np.ndarray


def search(
    encoder: Encoder,
    queries: Queries,
    documents: Documents,
    task: str,
    *,
    depth: int = DEPTH,
    excluded_rows: Sequence[Sequence[int]] = (),
) -> Ranking:
    """The `depth` nearest of all documents, without the `excluded_rows` of each query."""
    most = max(map(len, excluded_rows), default=0)
    scores_QK, rows_QK = nearest(encoder, queries.vectors_QE, documents.vectors_NE, depth + most)
    _varied(task, scores_QK, rows_QK >= 0)
    for query, rows in enumerate(excluded_rows):
        if rows:
            out = np.isin(rows_QK[query], rows)
            scores_QK[query, out], rows_QK[query, out] = -np.inf, -1
    return in_order(scores_QK, rows_QK, documents.ids, depth)


def rerank(
    encoder: Encoder,
    queries: Queries,
    documents: Documents,
    candidates: Sequence[Sequence[int]],
    task: str,
    *,
    depth: int = DEPTH,
) -> Ranking:
    """Each query's candidates by similarity, the best `depth` of them."""
    width = max(map(len, candidates), default=0)
    scores_QK = np.full((len(queries.ids), width), -np.inf, np.float32)
    rows_QK = np.full((len(queries.ids), width), -1)
    for query, rows in enumerate(candidates):
        if len(rows):
            asks, these = queries.vectors_QE[query, None], documents.vectors_NE[list(rows)]
            scores_QK[query, : len(rows)] = encoder.similarity(asks, these)
            rows_QK[query, : len(rows)] = rows
    _varied(task, scores_QK, rows_QK >= 0)
    return in_order(scores_QK, rows_QK, documents.ids, depth)


def reranked(
    ranking: Ranking, queries: Queries, documents: Documents, reranker: Reranker, depth: int
) -> Ranking:
    """The best `depth` of each query in the order of a reranker, which reads their texts.

    The others follow in the order in which they were. Scores are the reranker's; those of the
    others say their order alone.
    """
    rows_QK, scores_QK = ranking.rows_QK.copy(), ranking.scores_QK.copy()
    for query, text in enumerate(queries.texts):
        num = int((rows_QK[query] >= 0).sum())
        first = rows_QK[query, : min(num, depth)].copy()
        found = reranker.rank(text, [documents.texts[row] for row in first])
        rows_QK[query, : len(first)] = first[[place for place, _ in found]]
        scores_QK[query, : len(first)] = [score for _, score in found]
        lowest = scores_QK[query, len(first) - 1] if len(first) else 0
        scores_QK[query, len(first) : num] = lowest - np.arange(1, num - len(first) + 1)
    return Ranking(scores_QK, rows_QK)


def in_order(scores_QK: np.ndarray, rows_QK: np.ndarray, ids: Sequence[str], depth: int) -> Ranking:
    """The first `depth` as trec_eval ranks them: by score, ties by id, both descending."""
    order_QK = np.argsort(-scores_QK, axis=1, kind="stable")
    sorted_QK = np.take_along_axis(scores_QK, order_QK, axis=1)
    equal = (sorted_QK[:, 1:] == sorted_QK[:, :-1]) & np.isfinite(sorted_QK[:, 1:])
    tied = np.flatnonzero(equal.any(axis=1))
    if len(tied):
        place_N = np.empty(len(ids), np.int64)
        place_N[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
        order_QK[tied] = np.lexsort((-place_N[rows_QK[tied]], -scores_QK[tied]), axis=1)
    order_QK = order_QK[:, :depth]
    rows_QK = np.take_along_axis(rows_QK, order_QK, axis=1)
    return Ranking(np.take_along_axis(scores_QK, order_QK, axis=1), rows_QK)


def grades(ranking: Ranking, queries: Queries, documents: Documents) -> np.ndarray:
    """The grade of the document at each rank, [Q, K]; 0 if it has no judgement."""
    grades_QK = np.zeros(ranking.rows_QK.shape, np.int64)
    all_N = np.zeros(len(documents.ids) + 1, np.int64)  # the last one is for row -1, none
    for query, judged in enumerate(queries.qrels):
        known = [name for name in judged if name in documents.row_of]
        rows = [documents.row_of[name] for name in known]
        all_N[rows] = [judged[name] for name in known]
        grades_QK[query] = all_N[ranking.rows_QK[query]]
        all_N[rows] = 0
    return grades_QK


def measured(grades_QK: np.ndarray, qrels: Sequence[Mapping[str, int]]) -> dict[str, np.ndarray]:
    """MTEB's measures and "map" of each query by name, [Q] each; equal to measures.retrieval.

    trec_eval's definitions on matrices: dictionaries of documents and queries take seconds where
    this takes milliseconds.
    """
    ideal_QM = _ideal(qrels)
    num_relevant_Q = np.maximum((ideal_QM > 0).sum(axis=1), 1)
    hits_QK = grades_QK > 0
    found_QK = hits_QK.cumsum(axis=1)
    precision_QK = found_QK / (np.arange(hits_QK.shape[1]) + 1)
    gained_QK, best_QM = _discounted(grades_QK), _discounted(ideal_QM)
    precisions_QK = (precision_QK * hits_QK).cumsum(axis=1)
    any_Q = hits_QK.any(axis=1)
    first_Q = hits_QK.argmax(axis=1) if hits_QK.shape[1] else np.zeros(len(hits_QK), int)
    found = {}
    for k in CUTS:
        best_Q = _at(best_QM, k)
        found[f"ndcg@{k}"] = _at(gained_QK, k) / np.where(best_Q > 0, best_Q, 1)
        found[f"map@{k}"] = _at(precisions_QK, k) / num_relevant_Q
        found[f"recall@{k}"] = _at(found_QK, k) / num_relevant_Q
        found[f"precision@{k}"] = _at(found_QK, k) / k
        found[f"accuracy@{k}"] = (_at(found_QK, k) > 0).astype(float)
        found[f"mrr@{k}"] = np.where(any_Q & (first_Q < k), 1 / (first_Q + 1), 0.0)
    named = {f"{family}@{k}": found[f"{family}@{k}"] for family in FAMILIES for k in CUTS}
    return named | {"map": _at(precisions_QK, hits_QK.shape[1]) / num_relevant_Q}


def averages(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(each_Q.mean()) for name, each_Q in values.items()}


def items(
    values_Q: np.ndarray,
    ranking: Ranking,
    grades_QK: np.ndarray,
    queries: Queries,
    documents: Documents,
    corpus: Mapping[str, str],
) -> tuple[Item, ...]:
    """One item for each query, with the five documents that the model ranks first.

    Its texts are the query and the beginnings of the relevant documents, best first.
    """
    found = []
    for query, name in enumerate(queries.ids):
        first = zip(
            ranking.rows_QK[query, :SHOWN].tolist(),
            ranking.scores_QK[query, :SHOWN].tolist(),
            grades_QK[query, :SHOWN].tolist(),
            strict=True,
        )
        shown = tuple(
            (documents.ids[row], documents.texts[row][:SHOWN_CHARACTERS], score, grade)
            for row, score, grade in first
            if row >= 0
        )
        best = sorted(queries.qrels[query].items(), key=lambda judged: -judged[1])
        relevant = [corpus[key] for key, grade in best if grade > 0 and key in corpus]
        texts = queries.texts[query], *(text[:SHOWN_CHARACTERS] for text in relevant)
        found.append(Item(name, texts, float(values_Q[query]), None, shown))
    return tuple(found)


def groups(
    encoder: Encoder,
    ranking: Ranking,
    grades_QK: np.ndarray,
    queries: Queries,
    documents: Documents,
) -> dict[str, np.ndarray]:
    """Similarities of the relevant documents, and of the best other document of each query.

    If the model cannot score single pairs, only the relevant documents that were found.
    """
    there_QK = ranking.rows_QK >= 0
    other_QK = there_QK & (grades_QK <= 0)
    has_other_Q = other_QK.any(axis=1)
    others = ranking.scores_QK[has_other_Q, other_QK[has_other_Q].argmax(axis=1)]
    if encoder.similarity_name not in SIMILARITIES:
        return {"relevant": ranking.scores_QK[grades_QK > 0], "other": others}
    pairs = [
        (query, documents.row_of[name])
        for query, judged in enumerate(queries.qrels)
        for name, grade in judged.items()
        if grade > 0 and name in documents.row_of
    ]
    if not pairs:
        return {"other": others}
    asks, rows = np.array(pairs).T
    relevant = encoder.similarity_pairwise(queries.vectors_QE[asks], documents.vectors_NE[rows])
    return {"relevant": np.asarray(relevant, np.float32), "other": others}


def candidates_of(
    task: str,
    queries: Sequence[str],
    candidates: Mapping[str, Sequence[str]],
    corpus: Mapping[str, str],
) -> tuple[list[list[str]], list[str]]:
    """Candidates of each query without duplicates, and those of all queries.

    Raises DataError for a candidate that is not in the corpus, or if there are none.
    """
    found = [list(dict.fromkeys(candidates.get(query, ()))) for query in queries]
    for query, ids in zip(queries, found, strict=True):
        for name in ids:
            if name not in corpus:
                raise DataError(
                    f"{task}: candidate {name!r} of query {query!r} is not in the corpus"
                )
    needed = list(dict.fromkeys(name for ids in found for name in ids))
    if not needed:
        raise DataError(f"{task}: no query has candidates")
    return found, needed


def _varied(task: str, scores_QK: np.ndarray, there_QK: np.ndarray) -> None:
    """Raises DataError for NaN, or if no query has documents of different similarity."""
    if not np.isfinite(scores_QK[there_QK]).all():
        raise DataError(f"{task}: similarities contain NaN or infinity")
    several_Q = there_QK.sum(axis=1) > 1
    if not several_Q.any():
        return
    lowest_Q = np.where(there_QK, scores_QK, np.inf).min(axis=1)
    highest_Q = np.where(there_QK, scores_QK, -np.inf).max(axis=1)
    if (lowest_Q == highest_Q)[several_Q].all():
        raise DataError(
            f"{task}: all similarities of each of the {len(scores_QK)} queries are equal, so they "
            "give no ranking"
        )


def _ideal(qrels: Sequence[Mapping[str, int]]) -> np.ndarray:
    """Positive grades of each query in descending order, [Q, M], padded with zeros."""
    best = [sorted((g for g in judged.values() if g > 0), reverse=True) for judged in qrels]
    ideal_QM = np.zeros((len(best), max(map(len, best), default=0)), np.int64)
    for query, each in enumerate(best):
        ideal_QM[query, : len(each)] = each
    return ideal_QM


def _discounted(grades_QK: np.ndarray) -> np.ndarray:
    """DCG with linear gain down to each rank, [Q, K]; negative grades gain 0."""
    discount_K = np.log2(np.arange(grades_QK.shape[1]) + 2)
    gained_QK: np.ndarray = (np.maximum(grades_QK, 0) / discount_K).cumsum(axis=1)
    return gained_QK


def _at(cumulative_QK: np.ndarray, k: int) -> np.ndarray:
    """The value at rank k, [Q], or at the last rank if there are fewer."""
    width = cumulative_QK.shape[1]
    return cumulative_QK[:, min(k, width) - 1] if width else np.zeros(len(cumulative_QK))
