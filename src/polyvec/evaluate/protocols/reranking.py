"""Reranking: are relevant documents ranked first among given candidates?"""

from collections.abc import Sequence

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import RetrievalSet
from polyvec.errors import DataError
from polyvec.evaluate.outcome import Encoder, Outcome
from polyvec.evaluate.protocols import ranked
from polyvec.evaluate.protocols.retrieval import (
    encoded_documents,
    encoded_queries,
    judged,
    outcome,
)
from polyvec.rerank.reranker import Reranker


def reranking(
    encoder: Encoder,
    data: RetrievalSet,
    *,
    depth: int = ranked.DEPTH,
    reranker: Reranker | None = None,
    rerank_depth: int = ranked.RERANKED,
) -> Outcome:
    """MAP (the main score) and retrieval's other measures, over the candidates of each query.

    MTEB's second version: only candidates are ranked, but a relevant document that is not a
    candidate counts as missed. A query without candidates scores 0. Raises DataError for a
    candidate that is not in the corpus, or that the query excludes. A reranker orders the best
    `rerank_depth` candidates anew, as in `retrieval`.
    """
    names = judged(data)
    _check_excluded(data, names)
    candidates, needed = ranked.candidates_of(data.name, names, data.candidates, data.corpus)
    documents = encoded_documents(encoder, data, needed)
    queries = encoded_queries(encoder, data, names)
    rows = [[documents.row_of[name] for name in each] for each in candidates]
    ranking = ranked.rerank(encoder, queries, documents, rows, data.name, depth=depth)
    return outcome(
        KINDS["reranking"],
        encoder,
        data,
        queries,
        documents,
        ranking,
        reranker=reranker,
        rerank_depth=rerank_depth,
    )


def _check_excluded(data: RetrievalSet, queries: Sequence[str]) -> None:
    """Raises DataError for a document that a query both excludes and ranks."""
    for query in queries:
        for name in data.candidates.get(query, ()):
            if name in data.excluded.get(query, ()):
                raise DataError(
                    f"{data.name}: document {name!r} is excluded for query {query!r} and is among "
                    "its candidates; remove it from one of the two"
                )
