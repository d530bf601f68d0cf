"""Measures: values by hand, ties, and agreement with scipy, pytrec_eval and plain Python."""

import math
import random

import pytest

from polyvec.errors import DataError, ShapeError
from polyvec.evaluate.measures import RETRIEVAL_MEASURES, correlations, retrieval


def test_correlations_by_hand():
    # Ranks 1 2 3 4 against 1 2 4 3: Spearman 1 - 6 * 2 / (4 * 15) = 0.8.
    found = correlations([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 400.0, 30.0])
    assert found["spearman"] == pytest.approx(0.8)
    # Pearson of 1 2 3 and 1 2 6: covariance 5/2, deviations 1 and sqrt(7).
    assert correlations([1, 2, 3], [1, 2, 6])["pearson"] == pytest.approx(2.5 / math.sqrt(7))
    assert correlations([1, 2, 3], [6, 4, 2]) == pytest.approx({"spearman": -1, "pearson": -1})


def test_equal_scores_share_their_average_rank():
    # Ranks 1.5 1.5 3 against 1 2 3: covariance 1.5/2, deviations sqrt(0.75) and 1.
    found = correlations([5, 5, 9], [1, 2, 3])["spearman"]
    assert found == pytest.approx(0.75 / math.sqrt(0.75))


@pytest.mark.parametrize(
    ("predicted", "gold", "message"),
    [
        ([1, 1, 1], [1, 2, 3], "all 3 predicted scores are equal"),
        ([1, 2, 3], [4, 4, 4], "all 3 gold scores are equal"),
        ([1], [2], "all 1 predicted scores are equal"),
        ([], [], "all 0 predicted scores are equal"),
        ([1, 2, math.nan], [1, 2, 3], "predicted scores hold NaN or infinity"),
        ([1, 2, 3], [1, math.inf, 3], "gold scores hold NaN or infinity"),
    ],
)
def test_a_correlation_that_is_undefined_is_an_error(predicted, gold, message):
    with pytest.raises(DataError, match=message):
        correlations(predicted, gold)


def test_a_correlation_needs_pairs():
    with pytest.raises(ShapeError, match="2 predicted scores, 3 gold"):
        correlations([1, 2], [1, 2, 3])


def test_retrieval_by_hand():
    qrels = {"q": {"a": 2, "b": 1, "c": 0}}
    run = {"q": {"c": 9.0, "b": 8.0, "x": 7.0, "a": 6.0}}
    dcg = 1 / math.log2(3) + 2 / math.log2(5)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    expected = {"ndcg@10": dcg / ideal, "recall@100": 1, "map": (1 / 2 + 2 / 4) / 2, "mrr@10": 0.5}
    assert retrieval(qrels, run) == pytest.approx(expected)


def test_what_lies_below_the_cut_does_not_count():
    run = {"q": {f"x{i:03}": 1000.0 - i for i in range(100)} | {"late": 0.5}}
    run["q"]["tenth"] = 990.5  # after x000 .. x009: the eleventh
    assert retrieval({"q": {"tenth": 1}}, run) == pytest.approx(
        {"ndcg@10": 0, "recall@100": 1, "map": 1 / 11, "mrr@10": 0}
    )
    assert retrieval({"q": {"late": 1}}, run)["recall@100"] == 0


@pytest.mark.parametrize("run", [{"q": {"a": 1.0}}, {"q": {"a": 1.0}, "p": {}}])
def test_a_judged_query_without_results_counts_zero(run):
    found = retrieval({"q": {"a": 1}, "p": {"a": 1}}, run)
    assert found == dict.fromkeys(RETRIEVAL_MEASURES, 0.5)


def test_an_empty_run_counts_zero():
    assert retrieval({"q": {"a": 1}}, {}) == dict.fromkeys(RETRIEVAL_MEASURES, 0)


@pytest.mark.parametrize(("relevant", "rank"), [("c", 1), ("b", 2), ("a", 3)])
def test_all_measures_order_equal_scores_alike(relevant, rank):
    """By id, the largest first, as trec_eval does; ir-measures' RR@10 alone would not."""
    found = retrieval({"q": {relevant: 1}}, {"q": {"a": 1.0, "b": 1.0, "c": 1.0}})
    expected = {"ndcg@10": 1 / math.log2(rank + 1), "map": 1 / rank, "mrr@10": 1 / rank}
    assert found == pytest.approx(expected | {"recall@100": 1})


def drawn(seed, scores):
    """Many queries over 200 documents; scores from few values give many ties."""
    draw = random.Random(seed)
    names = [f"d{i}" for i in range(200)]
    qrels = {
        f"q{i}": {name: draw.choice([0, 1, 1, 2]) for name in draw.sample(names, 15)}
        for i in range(20)
    }
    run = {
        query: {name: draw.choice(scores) for name in draw.sample(names, 150)} for query in qrels
    }
    for grades in qrels.values():
        grades[next(iter(grades))] = 1
    return qrels, run


def by_definition(grades, scores):
    """nDCG@10, Recall@100, AP and RR@10 of a query, as textbooks define them."""
    order = sorted(scores, key=lambda name: (scores[name], name), reverse=True)
    gain = [max(grades.get(name, 0), 0) for name in order]
    ideal = sorted(grades.values(), reverse=True)
    relevant = sum(grade > 0 for grade in grades.values())
    dcg = sum(g / math.log2(i + 2) for i, g in enumerate(gain[:10]))
    best = sum(g / math.log2(i + 2) for i, g in enumerate(ideal[:10]))
    hits = [i for i, g in enumerate(gain, start=1) if g > 0]
    return {
        "ndcg@10": dcg / best,
        "recall@100": sum(rank <= 100 for rank in hits) / relevant,
        "map": sum(n / rank for n, rank in enumerate(hits, start=1)) / relevant,
        "mrr@10": 1 / hits[0] if hits and hits[0] <= 10 else 0.0,
    }


SCORES = {"ties": [0.5, 1.0, 2.0], "no ties": [i / 7 for i in range(10_000)]}


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_definitions(seed, scores):
    qrels, run = drawn(seed, scores)
    each = [by_definition(qrels[query], run[query]) for query in qrels]
    expected = {name: sum(e[name] for e in each) / len(each) for name in RETRIEVAL_MEASURES}
    assert retrieval(qrels, run) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
def test_agrees_with_trec_eval_itself(scores):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    qrels, run = drawn(9, scores)
    names = {"ndcg_cut.10": "ndcg@10", "recall.100": "recall@100", "map": "map"}
    each = pytrec_eval.RelevanceEvaluator(qrels, set(names)).evaluate(run)
    found = retrieval(qrels, run)
    for theirs, ours in names.items():
        key = theirs.replace(".", "_")
        mean = sum(scores[key] for scores in each.values()) / len(each)
        assert found[ours] == pytest.approx(mean, abs=1e-9)


def test_correlations_agree_with_plain_python():
    draw = random.Random(4)
    a = [draw.choice([0.1, 0.2, 0.3, 0.4]) for _ in range(200)]
    b = [x + draw.gauss(0, 0.2) for x in a]

    def ranks(values):
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    def pearson(x, y):
        mx, my = sum(x) / len(x), sum(y) / len(y)
        covariance = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
        return covariance / math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))

    expected = {"spearman": pearson(ranks(a), ranks(b)), "pearson": pearson(a, b)}
    assert correlations(a, b) == pytest.approx(expected, abs=1e-9)
