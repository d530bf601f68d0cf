"""Scores, as fractions. ir-measures and scipy compute; here are the names and the edge cases."""

from collections.abc import Mapping, Sequence

import numpy as np

from polyvec.errors import DataError, MissingExtraError, ShapeError

RETRIEVAL_MEASURES = ("ndcg@10", "recall@100", "map", "mrr@10")


def correlations(predicted: Sequence[float], gold: Sequence[float]) -> dict[str, float]:
    """Spearman's and Pearson's correlation, ties by average rank (the survey's Eq. 2 and 3).

    Raises DataError where either side is constant or not finite: there is no correlation then.
    """
    try:
        from scipy import stats
    except ImportError:
        raise MissingExtraError("scipy", "evaluate", "Spearman's correlation") from None
    if len(predicted) != len(gold):
        raise ShapeError(f"correlation: {len(predicted)} predicted scores, {len(gold)} gold")
    for name, values in (("predicted", predicted), ("gold", gold)):
        if not np.isfinite(np.asarray(values, float)).all():
            raise DataError(f"correlation: {name} scores hold NaN or infinity")
        if len(values) < 2 or np.ptp(np.asarray(values, float)) == 0:
            raise DataError(f"correlation: all {len(values)} {name} scores are equal")
    return {
        "spearman": float(stats.spearmanr(predicted, gold).statistic),
        "pearson": float(stats.pearsonr(predicted, gold).statistic),
    }


def retrieval(
    qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """nDCG@10 (linear gain), Recall@100, MAP and MRR@10, averaged over the judged queries.

    trec_eval's definitions through ir-measures: equal scores are ordered by document id, the
    largest first, and a judged query that is missing from the run counts 0.
    """
    try:
        import ir_measures
        from ir_measures import AP, RR, R, nDCG
    except ImportError:
        raise MissingExtraError("ir-measures", "evaluate", "retrieval measures") from None
    wanted = dict(zip(RETRIEVAL_MEASURES, (nDCG @ 10, R @ 100, AP, RR @ 10), strict=True))
    judged = {query: dict(documents) for query, documents in qrels.items()}
    ranked = {query: _ranked(documents) for query, documents in run.items()}
    found = ir_measures.calc_aggregate(list(wanted.values()), judged, ranked)
    return {name: float(found[measure]) for name, measure in wanted.items()}


def per_query(
    qrels: Mapping[str, Mapping[str, int]], run: Mapping[str, Mapping[str, float]], name: str
) -> dict[str, float]:
    """A measure of RETRIEVAL_MEASURES for each judged query; 0 for one missing from the run."""
    try:
        import ir_measures
        from ir_measures import AP, RR, R, nDCG
    except ImportError:
        raise MissingExtraError("ir-measures", "evaluate", "retrieval measures") from None
    wanted = dict(zip(RETRIEVAL_MEASURES, (nDCG @ 10, R @ 100, AP, RR @ 10), strict=True))
    judged = {query: dict(documents) for query, documents in qrels.items()}
    ranked = {query: _ranked(documents) for query, documents in run.items()}
    found = dict.fromkeys(judged, 0.0)
    for metric in ir_measures.iter_calc([wanted[name]], judged, ranked):
        found[metric.query_id] = float(metric.value)
    return found


def _ranked(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores 1..n in trec_eval's order: ir-measures' RR@10 would order equal ones otherwise."""
    order = sorted(scores, key=lambda document: (scores[document], document))
    return {document: float(place) for place, document in enumerate(order, start=1)}
