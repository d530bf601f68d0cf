"""How far a ranking follows the instruction given with the query."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from polyvec.errors import DataError
from polyvec.evaluate.measures.inputs import whole
from polyvec.evaluate.measures.ranking import Qrels, Run, in_order, per_query


def p_mrr(original: Run, changed: Run, excluded: Mapping[str, Collection[str]]) -> float:
    """Drop in rank of documents that a changed instruction excludes, -1 to 1; 0 if it is ignored.

    `excluded` names each query's documents that were relevant under the original instruction and no
    longer are; both runs have its queries. From rank 1 to 10 is 0.9, from 10 to 1 is -0.9: see
    `rank_change`. Mean over a query's documents, then over queries; papers print it times 100. A
    document missing from a run ranks after its last. Queries that exclude nothing are skipped.
    FollowIR: Weller et al. 2024, arXiv:2403.15246.

    >>> p_mrr({"q": {"a": 2.0, "b": 1.0}}, {"q": {"a": 1.0, "b": 2.0}}, {"q": ["a"]})
    0.5
    """
    means = []
    for query, documents in excluded.items():
        if isinstance(documents, str):
            raise DataError(f"p_mrr: query {query!r}: expected a list of documents, got a string")
        if not len(documents):
            continue
        for name, run in (("original", original), ("changed", changed)):
            if query not in run:
                raise DataError(f"p_mrr: query {query!r} is missing from the {name} run")
        before, after = _ranks(original[query]), _ranks(changed[query])
        # A document that was not retrieved ranks one below the last that was.
        changes = [
            rank_change(before.get(name, len(before) + 1), after.get(name, len(after) + 1))
            for name in documents
        ]
        means.append(np.mean(changes))
    if not means:
        raise DataError(f"p_mrr: none of {len(excluded)} queries excludes a document")
    return float(np.mean(means))


def rank_change(before: int, after: int) -> float:
    """Relative change of a document's reciprocal rank, above 0 if it fell; -1 to 1.

    >>> rank_change(1, 10), rank_change(10, 1), rank_change(3, 3)
    (0.9, -0.9, 0.0)
    """
    return after / before - 1 if before >= after else 1 - before / after


def robustness_at_k(
    qrels: Qrels, run: Run, instances: Mapping[str, Sequence[str]], k: int = 10
) -> float:
    """Mean over queries of nDCG@k under the instruction with the lowest one, 0 to 1.

    `instances` names each query's ids in the qrels, one per instruction; with one instruction it
    equals nDCG@k. Raises DataError for an id without judgements. InstructIR: Oh et al. 2024,
    arXiv:2402.14334.

    >>> run = {"q_1": {"a": 2.0, "b": 1.0}, "q_2": {"a": 2.0, "b": 1.0}}
    >>> round(robustness_at_k({"q_1": {"a": 1}, "q_2": {"b": 1}}, run, {"q": ["q_1", "q_2"]}), 4)
    0.6309
    """
    found = per_query(qrels, run, f"ndcg@{whole('k', k)}")
    worst = []
    for query, ids in instances.items():
        missing = [id_ for id_ in ids if id_ not in found]
        if isinstance(ids, str) or not len(ids) or missing:
            raise DataError(
                f"robustness_at_k: query {query!r}: expected ids that have judgements, "
                f"got {missing[:1] or ids!r}"
            )
        worst.append(min(found[id_] for id_ in ids))
    if not worst:
        raise DataError("robustness_at_k: no queries, expected at least one")
    return float(np.mean(worst))


def _ranks(scores: Mapping[str, float]) -> dict[str, int]:
    return {document: rank for rank, document in enumerate(in_order(scores), start=1)}
