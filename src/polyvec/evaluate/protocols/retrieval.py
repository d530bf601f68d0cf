"""Retrieval: are the relevant documents the nearest to a query in the whole corpus?"""

from collections.abc import Iterable

from polyvec.data.tasks.kinds import KINDS, TaskKind
from polyvec.data.tasks.sets import InstructionRetrievalSet, RetrievalSet
from polyvec.errors import DataError
from polyvec.evaluate.outcome import Encoder, Outcome
from polyvec.evaluate.protocols import ranked
from polyvec.evaluate.protocols.vectors import encode, mean
from polyvec.rerank.reranker import Reranker

REPEATED_SHARE = 0.1  # of the queries: fewer change the score by little
REPEATED_WORDS = 5  # a shorter query occurs by chance


def retrieval(
    encoder: Encoder,
    data: RetrievalSet,
    *,
    depth: int = ranked.DEPTH,
    reranker: Reranker | None = None,
    rerank_depth: int = ranked.RERANKED,
) -> Outcome:
    """nDCG@10 (the main score), MAP, recall, precision, hit rate and MRR at MTEB's cutoffs.

    Exact search for the `depth` nearest documents; queries and documents are encoded with their
    roles. A query's `excluded` documents do not count, nor does the query itself where it is one
    of the documents (`identical`). With a reranker, which orders the best `rerank_depth` anew,
    the scores are those after it; "ndcg@10_before" and "ndcg@10_gain" say what it changed.
    """
    names = judged(data)
    documents = encoded_documents(encoder, data, list(data.corpus))
    queries = encoded_queries(encoder, data, names)
    excluded_rows = [_excluded_rows(data, query, documents.row_of) for query in names]
    ranking = ranked.search(
        encoder, queries, documents, data.name, depth=depth, excluded_rows=excluded_rows
    )
    return outcome(
        KINDS["retrieval"],
        encoder,
        data,
        queries,
        documents,
        ranking,
        reranker=reranker,
        rerank_depth=rerank_depth,
    )


def judged(data: RetrievalSet) -> list[str]:
    """The queries that have judgements, in the order of the queries."""
    for query in data.qrels:
        if query not in data.queries:
            raise DataError(f"{data.name}: query {query!r} has judgements but no text")
    found = [query for query in data.queries if data.qrels.get(query)]
    if not found:
        raise DataError(f"{data.name}: no query has a judgement")
    return found


def encoded_documents(
    encoder: Encoder, data: RetrievalSet | InstructionRetrievalSet, ids: list[str]
) -> ranked.Documents:
    """Documents of the corpus by id, with their vectors."""
    texts = [data.corpus[name] for name in ids]
    vectors_NE = encode(
        encoder, texts, data.name, role="document", name=lambda row: f"document {ids[row]!r}"
    )
    return ranked.Documents(ids, texts, vectors_NE, {name: row for row, name in enumerate(ids)})


def encoded_queries(encoder: Encoder, data: RetrievalSet, ids: list[str]) -> ranked.Queries:
    """Queries by id, with their judgements and vectors."""
    texts = [data.queries[name] for name in ids]
    vectors_QE = encode(
        encoder, texts, data.name, role="query", name=lambda row: f"query {ids[row]!r}"
    )
    return ranked.Queries(ids, texts, [data.qrels[name] for name in ids], vectors_QE)


def outcome(
    kind: TaskKind,
    encoder: Encoder,
    data: RetrievalSet,
    queries: ranked.Queries,
    documents: ranked.Documents,
    ranking: ranked.Ranking,
    *,
    reranker: Reranker | None = None,
    rerank_depth: int = ranked.RERANKED,
) -> Outcome:
    """Scores, items and similarities of a ranking; an item's value is the kind's main measure.

    With a reranker, of the ranking that it makes; similarities are still the encoder's.
    """
    main, first = kind.main_measure, ranking
    first_QK = grades_QK = ranked.grades(first, queries, documents)
    if reranker is not None:
        ranking = ranked.reranked(first, queries, documents, reranker, rerank_depth)
        grades_QK = ranked.grades(ranking, queries, documents)
    values = ranked.measured(grades_QK, queries.qrels)
    scores = ranked.averages(values)
    if reranker is not None:
        before = float(ranked.measured(first_QK, queries.qrels)[main].mean())
        scores |= {f"{main}_before": before, f"{main}_gain": scores[main] - before}
    return Outcome(
        kind.name,
        main,
        scores,
        ranked.items(values[main], ranking, grades_QK, queries, documents, data.corpus),
        values[main][:, None],
        mean,
        ranked.groups(encoder, first, first_QK, queries, documents),
        _notes(data, queries),
    )


def _notes(data: RetrievalSet, queries: ranked.Queries) -> tuple[str, ...]:
    """Says how many queries stand word for word in a relevant document, if many do.

    Matching words is then enough: HumanEval's functions, for one, contain their docstrings.
    """
    found = sum(
        _repeated(text, (data.corpus.get(name, "") for name, grade in judged.items() if grade > 0))
        for text, judged in zip(queries.texts, queries.qrels, strict=True)
    )
    if found < REPEATED_SHARE * len(queries.texts):
        return ()
    return (
        f"{found} of {len(queries.texts)} queries occur word for word in a relevant document, so "
        "the score measures matching words as well as meaning",
    )


def _repeated(query: str, documents: Iterable[str]) -> bool:
    """Whether a query of some length is part of a document, white space aside."""
    words = query.split()
    plain = " ".join(words)
    return len(words) >= REPEATED_WORDS and any(plain in " ".join(d.split()) for d in documents)


def _excluded_rows(data: RetrievalSet, query: str, row_of: dict[str, int]) -> list[int]:
    """Rows of documents that do not count for a query."""
    names = set(data.excluded.get(query, ()))
    if query in data.identical:
        names.add(query)
    return [row_of[name] for name in names if name in row_of]
