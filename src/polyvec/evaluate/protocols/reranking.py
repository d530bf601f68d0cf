"""Reranking: are relevant documents ranked first among given candidates?"""

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import RetrievalSet
from polyvec.evaluate.outcome import Encoder, Outcome
from polyvec.evaluate.protocols import ranked
from polyvec.evaluate.protocols.retrieval import (
    encoded_documents,
    encoded_queries,
    judged,
    outcome,
)


def reranking(encoder: Encoder, data: RetrievalSet, *, depth: int = ranked.DEPTH) -> Outcome:
    """MAP (the main score) and retrieval's other measures, over the candidates of each query.

    MTEB's second version: only candidates are ranked, but a relevant document that is not a
    candidate counts as missed. A query without candidates scores 0. Raises DataError for a
    candidate that is not in the corpus.
    """
    names = judged(data)
    candidates, needed = ranked.candidates_of(data.name, names, data.candidates, data.corpus)
    documents = encoded_documents(encoder, data, needed)
    queries = encoded_queries(encoder, data, names)
    rows = [[documents.row_of[name] for name in each] for each in candidates]
    ranking = ranked.rerank(encoder, queries, documents, rows, data.name, depth=depth)
    return outcome(KINDS["reranking"], encoder, data, queries, documents, ranking)
