"""Instruction retrieval: do the rankings of a query follow its instructions?

Q queries, R of them with each of their instructions, K ranks, E vector dimensions.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import InstructionRetrievalSet
from polyvec.errors import DataError
from polyvec.evaluate.measures.instruction import rank_change
from polyvec.evaluate.outcome import Encoder, Outcome
from polyvec.evaluate.protocols import ranked
from polyvec.evaluate.protocols.retrieval import encoded_documents
from polyvec.evaluate.protocols.vectors import encode_instructed, mean

CONDITIONS = ("original", "changed")


def instruction_retrieval(
    encoder: Encoder,
    data: InstructionRetrievalSet,
    *,
    depth: int = ranked.DEPTH,
    joined: bool = False,
) -> Outcome:
    """How rankings follow instructions: p-MRR (FollowIR) or robustness@10 (InstructIR).

    Where the second instruction narrows the first (`data.changed`), "p_mrr" measures how far the
    documents drop that it rules out, -1 to 1 (Weller et al. 2024, arXiv:2403.15246), and
    "original_map" and "changed_map" are retrieval's measures under either instruction. Otherwise
    "robustness@10" is the mean over queries of the lowest nDCG@10 under any instruction (Oh et
    al. 2024, arXiv:2402.14334). Names without a prefix are averages over all instructions.
    The encoder gets the instruction, or with `joined` it is appended to the text, as in MTEB.
    """
    asked = _check(data)
    runs = [(query, i) for query in asked for i in range(len(data.instructions[query]))]
    ruled_out = [_ruled_out(*data.qrels[query]) for query in asked] if data.changed else []
    if data.changed and not any(ruled_out):
        raise DataError(f"{data.name}: no second instruction rules out a document")
    documents, ranking, queries = _ranked(encoder, data, runs, depth, joined)
    grades_RK = ranked.grades(ranking, queries, documents)
    values = ranked.measured(grades_RK, queries.qrels)
    scores = ranked.averages(values)
    if data.changed:
        each_Q = _p_mrr(ranking, ruled_out, documents)
        for i, condition in enumerate(CONDITIONS):
            under = ranked.averages({name: all_R[i::2] for name, all_R in values.items()})
            scores |= {f"{condition}_{name}": value for name, value in under.items()}
    else:
        firsts = [run for run, (_, i) in enumerate(runs) if i == 0]
        each_Q = np.minimum.reduceat(values["ndcg@10"], firsts)
    kind = KINDS[data.kind]
    return Outcome(
        kind.name,
        kind.main_measure,
        {kind.main_measure: float(each_Q.mean())} | scores,
        ranked.items(values["ndcg@10"], ranking, grades_RK, queries, documents, data.corpus),
        each_Q[:, None],
        mean,
        ranked.groups(encoder, ranking, grades_RK, queries, documents),
    )


def _check(data: InstructionRetrievalSet) -> list[str]:
    """The queries that have judgements, in the order of the queries."""
    found = [query for query in data.queries if any(data.qrels.get(query, ()))]
    if not found:
        raise DataError(f"{data.name}: no query has a judgement")
    for query in found:
        num_given, num_judged = len(data.instructions.get(query, ())), len(data.qrels[query])
        if num_given != num_judged or (data.changed and num_given != 2):
            raise DataError(
                f"{data.name}: query {query!r} has {num_given} instructions and {num_judged} sets "
                f"of judgements; expected {'2 of both' if data.changed else 'equal numbers'}"
            )
    return found


def _ranked(
    encoder: Encoder,
    data: InstructionRetrievalSet,
    runs: Sequence[tuple[str, int]],
    depth: int,
    joined: bool,
) -> tuple[ranked.Documents, ranked.Ranking, ranked.Queries]:
    """The ranking of each query under each instruction, of its candidates if it has some."""
    rows: list[list[int]] = []
    if data.candidates:
        names, needed = ranked.candidates_of(
            data.name, [query for query, _ in runs], data.candidates, data.corpus
        )
        documents = encoded_documents(encoder, data, needed)
        rows = [[documents.row_of[name] for name in each] for each in names]
    else:
        documents = encoded_documents(encoder, data, list(data.corpus))
    queries = _encoded_queries(encoder, data, runs, joined)
    if data.candidates:
        ranking = ranked.rerank(encoder, queries, documents, rows, data.name, depth=depth)
    else:
        ranking = ranked.search(encoder, queries, documents, data.name, depth=depth)
    return documents, ranking, queries


def _encoded_queries(
    encoder: Encoder, data: InstructionRetrievalSet, runs: Sequence[tuple[str, int]], joined: bool
) -> ranked.Queries:
    """Queries with one of their instructions each: "q/1", "q/2"."""
    ids = [f"{query}/{i + 1}" for query, i in runs]
    texts = [data.queries[query] for query, _ in runs]
    instructions = [data.instructions[query][i] for query, i in runs]
    vectors_RE = encode_instructed(
        encoder,
        texts,
        instructions,
        data.name,
        role="query",
        name=lambda run: f"query {ids[run]!r}",
        joined=joined,
    )
    shown = [f"{text}\n{words}" for text, words in zip(texts, instructions, strict=True)]
    return ranked.Queries(ids, shown, [data.qrels[query][i] for query, i in runs], vectors_RE)


def _p_mrr(
    ranking: ranked.Ranking, ruled_out: Sequence[Sequence[str]], documents: ranked.Documents
) -> np.ndarray:
    """p-MRR of each query whose second instruction rules out a document, [Q]."""
    found = []
    for query, names in enumerate(ruled_out):
        both = ranking.rows_QK[2 * query : 2 * query + 2]
        changes = []
        for name in names:
            before, after = (_rank(rows_K, documents.row_of.get(name)) for rows_K in both)
            changes.append(rank_change(before, after))
        found += [np.mean(changes)] if changes else []
    return np.array(found)


def _ruled_out(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Documents whose grade is lower under the second instruction."""
    return [name for name, grade in before.items() if grade > max(after.get(name, 0), 0)]


def _rank(rows_K: np.ndarray, row: int | None) -> int:
    """From 1; a document that is not in the ranking counts as just after the last."""
    place = np.flatnonzero(rows_K == (-2 if row is None else row))  # -1 is no document
    return int(place[0]) + 1 if len(place) else int((rows_K >= 0).sum()) + 1
