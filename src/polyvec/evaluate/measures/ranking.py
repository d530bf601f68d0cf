"""Retrieval measures, the survey's Eq. 4 to 9, averaged over queries.

trec_eval's definitions: equal scores are ordered by document id, the largest first; a grade below
1 is not relevant and gains nothing; a judged query that is missing from the run scores 0.
ir-measures computes all but DCG and exponential gains, which it lacks.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from polyvec.errors import DataError, SettingsError, known
from polyvec.evaluate.measures.inputs import Numbers, extra, numbers, whole

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]

RETRIEVAL_MEASURES = ("ndcg@10", "recall@100", "map", "mrr@10")
CUTS = (1, 3, 5, 10, 20, 100, 1000)  # MTEB's
MTEB_MEASURES = tuple(
    f"{family}@{k}"
    for family in ("ndcg", "map", "recall", "precision", "accuracy", "mrr")
    for k in CUTS
)
# Measures of ir-measures, by our name.
THEIRS = {
    "ndcg": "nDCG",
    "map": "AP",
    "mrr": "RR",
    "recall": "R",
    "precision": "P",
    "accuracy": "Success",
}
# Measures computed here: kind and gain.
OURS = {
    "dcg": ("dcg", "linear"),
    "dcg_exponential": ("dcg", "exponential"),
    "ndcg_exponential": ("ndcg", "exponential"),
}
NEED_A_CUT = ("recall", "precision", "accuracy")
NAMES = [f"{family}@k" for family in (*THEIRS, *OURS)]
NO_POSITIVES = ("zero", "skip")
GAINS = {"linear": lambda grade: grade, "exponential": lambda grade: np.exp2(grade) - 1}


def retrieval(
    qrels: Qrels,
    run: Run,
    measures: Sequence[str] = RETRIEVAL_MEASURES,
    *,
    no_positives: str = "zero",
) -> dict[str, float]:
    """Measures by name, averaged over the judged queries; MTEB_MEASURES are those MTEB reports.

    A name is a family and a cutoff, "ndcg@10"; map, mrr, dcg and ndcg need no cutoff. Families:
    ndcg and dcg (linear gain), ndcg_exponential, dcg_exponential, map, mrr, recall, precision,
    accuracy (hit rate). A query without a relevant document scores 0 (no_positives="zero", as in
    trec_eval) or is skipped ("skip"). Raises SettingsError for an unknown name, DataError for a
    score that is not finite, a grade that is not an integer, or if no query is left.

    >>> retrieval({"q": {"a": 1}}, {"q": {"b": 0.9, "a": 0.8}}, ["mrr@10", "recall@1"])
    {'mrr@10': 0.5, 'recall@1': 0.0}
    """
    found = _values(qrels, run, measures, no_positives)
    return {name: sum(each.values()) / len(each) for name, each in found.items()}


def per_query(qrels: Qrels, run: Run, name: str, *, no_positives: str = "zero") -> dict[str, float]:
    """A measure for each judged query, named as in `retrieval`; 0 if missing from the run."""
    return _values(qrels, run, [name], no_positives)[name]


def recall_at_k(qrels: Qrels, run: Run, k: int, *, no_positives: str = "zero") -> float:
    """Mean share of a query's relevant documents among its first k (Eq. 4), 0 to 1.

    >>> recall_at_k({"q": {"a": 1, "c": 1}}, {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, 2)
    0.5
    """
    return _mean(qrels, run, "recall", whole("k", k), no_positives)


def accuracy_at_k(qrels: Qrels, run: Run, k: int, *, no_positives: str = "zero") -> float:
    """Share of queries with a relevant document among the first k (Eq. 5), 0 to 1; the hit rate.

    >>> accuracy_at_k({"q": {"a": 1, "c": 1}}, {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, 2)
    1.0
    """
    return _mean(qrels, run, "accuracy", whole("k", k), no_positives)


def mrr_at_k(qrels: Qrels, run: Run, k: int | None = None, *, no_positives: str = "zero") -> float:
    """Mean of 1 / rank of the first relevant document (Eq. 6), 0 to 1; 0 beyond rank k.

    >>> mrr_at_k({"q": {"b": 1}}, {"q": {"a": 3.0, "b": 2.0}})
    0.5
    """
    return _mean(qrels, run, "mrr", k, no_positives)


def map_at_k(qrels: Qrels, run: Run, k: int | None = None, *, no_positives: str = "zero") -> float:
    """Mean average precision (Eq. 7), 0 to 1: precision at each relevant document of the first k.

    The sum is divided by the number of all relevant documents, found or not.

    >>> map_at_k({"q": {"b": 1, "d": 1}}, {"q": {"a": 3.0, "b": 2.0}})
    0.25
    """
    return _mean(qrels, run, "map", k, no_positives)


def dcg_at_k(
    qrels: Qrels,
    run: Run,
    k: int | None = None,
    *,
    gain: str = "linear",
    no_positives: str = "zero",
) -> float:
    """Discounted cumulative gain of the first k (Eq. 8), 0 or more, mean; gains as in `dcg`.

    >>> dcg_at_k({"q": {"a": 3}}, {"q": {"a": 1.0}}, 10, gain="exponential")
    7.0
    """
    return _mean(qrels, run, _with_gain("dcg", gain), k, no_positives)


def ndcg_at_k(
    qrels: Qrels,
    run: Run,
    k: int | None = None,
    *,
    gain: str = "linear",
    no_positives: str = "zero",
) -> float:
    """Mean DCG of the first k over that of the ideal order (Eq. 9), 0 to 1; gains as in `dcg`.

    >>> round(ndcg_at_k({"q": {"b": 1}}, {"q": {"a": 3.0, "b": 2.0}}, 10), 4)
    0.6309
    """
    return _mean(qrels, run, _with_gain("ndcg", gain), k, no_positives)


def dcg(grades: Numbers, k: int | None = None, *, gain: str = "linear") -> float:
    """Discounted cumulative gain of grades in the order of their ranks (Eq. 8), 0 or more.

    gain="linear" is the grade itself (Järvelin and Kekäläinen 2002; trec_eval, BEIR, MTEB),
    "exponential" 2^grade - 1 (Burges et al. 2005; the survey); they agree for grades of 0 and 1. A
    grade below 0 gains 0. Raises DataError for grades that are not finite or too large.

    >>> dcg([0, 0, 3]), dcg([0, 0, 3], gain="exponential")
    (1.5, 3.5)
    """
    _with_gain("dcg", gain)
    cut = numbers("dcg: grades", grades)[: None if k is None else whole("k", k)]
    with np.errstate(over="ignore"):
        gains = GAINS[gain](np.maximum(cut, 0))
    total = float((gains / np.log2(np.arange(len(gains)) + 2)).sum())
    if not np.isfinite(total):
        raise DataError(f"dcg: grade {cut.max():g} is too large for {gain} gain; use linear gain")
    return total


def in_order(scores: Mapping[str, float]) -> list[str]:
    """Documents as trec_eval ranks them: by score, equal ones by id, both descending."""
    values = np.asarray(list(scores.values()) or [0.0])
    if values.dtype.kind not in "bfiu" or not np.isfinite(values).all():
        wrong = (n for n, x in scores.items() if isinstance(x, str) or not np.isfinite(float(x)))
        document = next(wrong, next(iter(scores)))
        raise DataError(
            f"run: document {document!r} has the score {scores[document]!r}, expected a finite "
            "number"
        )
    return sorted(scores, key=lambda document: (scores[document], document), reverse=True)


def _values(
    qrels: Qrels, run: Run, names: Sequence[str], no_positives: str
) -> dict[str, dict[str, float]]:
    """Each measure's value for each query, in the order of the qrels."""
    families = {name: _family(name) for name in names}
    judged = _judged(qrels, no_positives)
    _check_ids(judged, run)
    ranked = {query: in_order(run[query]) for query in judged if query in run}
    found = {name: dict.fromkeys(judged, 0.0) for name in names}
    theirs = {_measure(*families[name]): name for name in names if families[name][0] in THEIRS}
    if theirs:
        # Ranks as scores, because RR@10 of ir-measures breaks ties in another order.
        places = {query: _places(documents) for query, documents in ranked.items()}
        module = extra("ir_measures", "retrieval measures")
        for metric in module.iter_calc(list(theirs), judged, places):
            found[theirs[metric.measure]][metric.query_id] = float(metric.value)
    for name, (family, k) in families.items():
        for query, documents in ranked.items() if family in OURS else ():
            found[name][query] = _gained(judged[query], documents, family, k)
    return found


def _gained(grades: Mapping[str, int], documents: list[str], family: str, k: int | None) -> float:
    """DCG or nDCG of a query's documents in their order."""
    kind, gain = OURS[family]
    value = dcg([grades.get(document, 0) for document in documents], k, gain=gain)
    if kind == "dcg" or value == 0:
        return value
    return value / dcg(sorted(grades.values(), reverse=True), k, gain=gain)


def _family(name: str) -> tuple[str, int | None]:
    """A measure's family and its cutoff."""
    found = re.fullmatch(r"([a-z_]+)(?:@([1-9][0-9]*))?", name)
    family, k = found.groups() if found else (name, None)
    if family not in THEIRS and family not in OURS:
        raise SettingsError(f"retrieval: measure {name!r} is not known." + known(family, NAMES))
    if k is None and family in NEED_A_CUT:
        raise SettingsError(f"retrieval: measure {name!r} needs a cutoff, such as '{family}@10'")
    return family, int(k) if k else None


def _measure(family: str, k: int | None) -> Any:
    measure = getattr(extra("ir_measures", "retrieval measures"), THEIRS[family])
    return measure if k is None else measure @ k


def _judged(qrels: Qrels, no_positives: str) -> dict[str, dict[str, int]]:
    """The queries to average over, with integer grades."""
    if no_positives not in NO_POSITIVES:
        raise SettingsError(
            f"no_positives {no_positives!r} is not known." + known(no_positives, NO_POSITIVES)
        )
    judged = {}
    for query, grades in qrels.items():
        for document, grade in grades.items():
            if isinstance(grade, str) or not math.isfinite(grade) or int(grade) != grade:
                raise DataError(
                    f"qrels: query {query!r}, document {document!r}: grade {grade!r}, expected "
                    "an integer"
                )
        if no_positives == "zero" or any(grade > 0 for grade in grades.values()):
            judged[query] = {document: int(grade) for document, grade in grades.items()}
    if not judged:
        why = "no query" if not qrels else f"none of {len(qrels)} queries has a relevant document"
        raise DataError(f"retrieval: nothing to average over, {why}")
    return judged


def _check_ids(judged: Qrels, run: Run) -> None:
    """Raises DataError for a run whose ids are others than those of the judgements.

    Every score would be 0, as with ids that are numbers on one side and strings on the other. An
    empty run scores 0, and so does one that finds nothing relevant.
    """
    if run and not any(query in judged for query in run):
        raise DataError(
            "retrieval: run and qrels have no query in common; the run has "
            f"{next(iter(run))!r}, the qrels {next(iter(judged))!r}: write ids alike"
        )
    for what, theirs, ours in (
        ("query", run, judged),
        ("document", _documents(run), _documents(judged)),
    ):
        kinds = {type(each) for each in theirs}, {type(each) for each in ours}
        if all(kinds) and not kinds[0] & kinds[1]:
            names = ["/".join(sorted(kind.__name__ for kind in side)) for side in kinds]
            raise DataError(
                f"retrieval: {what} ids are {names[0]} in the run and {names[1]} in the qrels, so "
                "none of them is equal; write ids alike"
            )


def _documents(side: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    return (document for found in side.values() for document in found)


def _places(documents: list[str]) -> dict[str, float]:
    """Scores n, n - 1, ... 1 for documents in their order."""
    return {document: float(len(documents) - i) for i, document in enumerate(documents)}


def _with_gain(family: str, gain: str) -> str:
    if gain not in GAINS:
        raise SettingsError(f"gain {gain!r} is not known." + known(gain, GAINS))
    return family if gain == "linear" else f"{family}_{gain}"


def _mean(qrels: Qrels, run: Run, family: str, k: int | None, no_positives: str) -> float:
    name = family if k is None else f"{family}@{whole('k', k)}"
    return retrieval(qrels, run, [name], no_positives=no_positives)[name]
