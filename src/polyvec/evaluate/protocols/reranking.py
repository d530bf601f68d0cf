"""Reranking: candidates that somebody found already are put in order."""

from polyvec.data.tasks.sets import RetrievalSet
from polyvec.evaluate.outcome import Encoder, Outcome
from polyvec.evaluate.protocols import ranked
from polyvec.evaluate.protocols.retrieval import (
    encoded_documents,
    encoded_queries,
    judged,
    outcome,
)


def reranking(
    encoder: Encoder, data: RetrievalSet, *, seed: int = 42, depth: int = ranked.DEPTH
) -> Outcome:
    """MAP (the main score), MRR@10, nDCG@10 and what retrieval has, over each query's candidates.

    MTEB's second version: only candidates are scored, but a relevant document that is none of
    them is missed. A query without candidates counts 0. Nothing is drawn, so `seed` changes
    nothing. Raises DataError for a candidate that is not in the corpus.
    """
    names = judged(data)
    candidates, needed = ranked.candidates_of(data.name, names, data.candidates, data.corpus)
    documents = encoded_documents(encoder, data, needed)
    queries = encoded_queries(encoder, data, names)
    rows = [[documents.row_of[name] for name in each] for each in candidates]
    ranking = ranked.rerank(encoder, queries, documents, rows, data.name, depth=depth)
    return outcome("reranking", "map", encoder, data, queries, documents, ranking)
