"""Rankings: values by hand, ties, and agreement with pytrec_eval, mteb, scikit-learn and Python."""

import math
import random

import pytest

from polyvec.errors import DataError, SettingsError
from polyvec.evaluate.measures import (
    CUTS,
    MTEB_MEASURES,
    RETRIEVAL_MEASURES,
    accuracy_at_k,
    dcg,
    dcg_at_k,
    map_at_k,
    mrr_at_k,
    ndcg_at_k,
    per_query,
    recall_at_k,
    retrieval,
)


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


ONE = {"q": {"a": 3, "b": 1, "c": 0, "d": 2}}
FIRST = {"q": {"c": 9.0, "b": 8.0, "x": 7.0, "a": 6.0}}  # d was not found


def test_measures_at_k_by_hand():
    assert recall_at_k(ONE, FIRST, 1) == 0
    assert recall_at_k(ONE, FIRST, 2) == pytest.approx(1 / 3)
    assert recall_at_k(ONE, FIRST, 4) == recall_at_k(ONE, FIRST, 1000) == pytest.approx(2 / 3)
    assert [accuracy_at_k(ONE, FIRST, k) for k in (1, 2, 4)] == [0, 1, 1]
    assert [mrr_at_k(ONE, FIRST, k) for k in (1, 2, None)] == [0, 0.5, 0.5]
    # Divided by all three relevant documents, whatever the cut.
    assert map_at_k(ONE, FIRST, 3) == pytest.approx((1 / 2) / 3)
    assert map_at_k(ONE, FIRST) == pytest.approx((1 / 2 + 2 / 4) / 3)


def test_both_gains_by_hand():
    discount = [1 / math.log2(rank + 1) for rank in range(1, 5)]
    assert dcg_at_k(ONE, FIRST, 10) == pytest.approx(discount[1] + 3 * discount[3])
    assert dcg_at_k(ONE, FIRST, 3) == pytest.approx(discount[1])
    found = dcg_at_k(ONE, FIRST, 10, gain="exponential")
    assert found == pytest.approx(discount[1] + 7 * discount[3])
    best = 3 * discount[0] + 2 * discount[1] + discount[2]
    assert ndcg_at_k(ONE, FIRST, 10) == pytest.approx((discount[1] + 3 * discount[3]) / best)
    best = 7 * discount[0] + 3 * discount[1] + discount[2]
    assert ndcg_at_k(ONE, FIRST, 10, gain="exponential") == pytest.approx(found / best)
    assert ndcg_at_k(ONE, FIRST, 2, gain="exponential") == pytest.approx(
        discount[1] / (7 * discount[0] + 3 * discount[1])
    )
    assert dcg([3, 2, 3, 0, 1]) == pytest.approx(3 + 2 * discount[1] + 3 / 2 + 1 / math.log2(6))
    assert (dcg([]), dcg([-2, 0]), dcg([5, 1], 1)) == (0, 0, 5)


@pytest.mark.parametrize("k", [3, 10, None])
def test_gains_differ_only_where_grades_are_above_1(k):
    qrels, run = drawn(5, SCORES["no ties"])
    for measure in (dcg_at_k, ndcg_at_k):
        assert measure(qrels, run, k) != pytest.approx(
            measure(qrels, run, k, gain="exponential"), abs=1e-4
        )
        binary = {
            query: {d: min(g, 1) for d, g in grades.items()} for query, grades in qrels.items()
        }
        assert measure(binary, run, k) == pytest.approx(measure(binary, run, k, gain="exponential"))


def test_exponential_gain_agrees_with_scikit_learn():
    from sklearn.metrics import dcg_score, ndcg_score

    qrels, run = drawn(6, SCORES["ties"])
    for query, grades in qrels.items():  # scikit-learn has no document that is not in the run
        scores = {name: float(i) for i, name in enumerate(run[query] | grades)}
        gains = [[2 ** grades.get(name, 0) - 1 for name in scores]]
        for k in (1, 10, None):
            one, first = {query: grades}, {query: scores}
            assert dcg_at_k(one, first, k, gain="exponential") == pytest.approx(
                dcg_score(gains, [list(scores.values())], k=k)
            )
            assert ndcg_at_k(one, first, k, gain="exponential") == pytest.approx(
                ndcg_score(gains, [list(scores.values())], k=k)
            )


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
def test_all_cuts_agree_with_trec_eval_and_mteb(scores):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    retrieval_metrics = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    qrels, run = drawn(7, scores)
    for grades in qrels.values():
        grades |= dict.fromkeys(list(grades)[-3:], -1)
    names = {
        "ndcg_cut": "ndcg",
        "map_cut": "map",
        "recall": "recall",
        "P": "precision",
        "success": "accuracy",
    }
    found = retrieval(qrels, run, MTEB_MEASURES)
    assert len(found) == 6 * 7
    for theirs, ours in names.items():
        cuts = ",".join(map(str, CUTS))
        each = pytrec_eval.RelevanceEvaluator(qrels, {f"{theirs}.{cuts}"}).evaluate(run)
        for k in CUTS:
            mean = sum(values[f"{theirs}_{k}"] for values in each.values()) / len(each)
            assert found[f"{ours}@{k}"] == pytest.approx(mean, abs=1e-9)
    theirs = retrieval_metrics.calculate_retrieval_scores(run, qrels, CUTS)
    for k in CUTS:
        assert found[f"ndcg@{k}"] == pytest.approx(theirs.ndcg[f"NDCG@{k}"], abs=1e-5)
        assert found[f"mrr@{k}"] == pytest.approx(theirs.mrr[f"MRR@{k}"])
        assert found[f"accuracy@{k}"] == pytest.approx(theirs.hit_rate[f"HitRate@{k}"], abs=1e-5)


def test_linear_gain_of_ours_is_trec_evals():
    qrels, run = drawn(8, SCORES["ties"])
    for query, grades in qrels.items():
        grades |= dict.fromkeys(list(grades)[-3:], -1)
        value = dcg_at_k({query: grades}, run, 10) / dcg(sorted(grades.values())[::-1], 10)
        assert value == pytest.approx(ndcg_at_k({query: grades}, run, 10))


def test_a_grade_below_0_is_worth_nothing():
    """It neither lowers the gain nor makes a document relevant."""
    below = {"q": {"a": 2, "b": -1, "c": 0}}
    zero = {"q": {"a": 2, "b": 0, "c": 0}}
    run = {"q": {"b": 9.0, "a": 8.0, "c": 7.0}}
    names = (*MTEB_MEASURES, "map", "mrr", "ndcg", "dcg@10", "dcg_exponential@10")
    assert retrieval(below, run, names) == retrieval(zero, run, names)
    assert per_query(below, run, "ndcg_exponential@3") == {"q": pytest.approx(1 / math.log2(3))}


def test_a_query_without_relevant_documents_counts_0_or_does_not_count():
    qrels = {"q": {"a": 1}, "none": {"a": 0, "b": -1}, "empty": {}}
    run = {query: {"a": 2.0, "b": 1.0} for query in qrels}
    for name in (*MTEB_MEASURES, "dcg@10", "ndcg_exponential@10"):
        skipped = retrieval(qrels, run, [name], no_positives="skip")[name]
        assert retrieval(qrels, run, [name])[name] == pytest.approx(skipped / 3)
    assert per_query(qrels, run, "map", no_positives="skip") == {"q": 1}
    assert ndcg_at_k(qrels, run, 10, gain="exponential", no_positives="skip") == 1
    with pytest.raises(DataError, match="none of 1 queries has a relevant document"):
        retrieval({"q": {"a": 0}}, run, no_positives="skip")
    with pytest.raises(DataError, match="nothing to average over, no query"):
        retrieval({}, run)
    with pytest.raises(SettingsError, match="'ignore' is not known"):
        retrieval(qrels, run, no_positives="ignore")


def test_mean_over_queries_is_the_mean_of_each():
    """The survey prints Eq. 4 to 9 for one query."""
    qrels, run = drawn(10, SCORES["ties"])
    for name in (*RETRIEVAL_MEASURES, "accuracy@3", "dcg_exponential@5"):
        each = [retrieval({query: qrels[query]}, run, [name])[name] for query in qrels]
        assert retrieval(qrels, run, [name])[name] == pytest.approx(sum(each) / len(each))
        assert list(per_query(qrels, run, name).values()) == pytest.approx(each)


def test_accuracy_is_never_below_recall_and_all_documents_give_recall_1():
    qrels, run = drawn(11, SCORES["no ties"])
    for k in CUTS:
        assert accuracy_at_k(qrels, run, k) >= recall_at_k(qrels, run, k)
    everything = {query: {f"d{i}": float(i) for i in range(200)} for query in qrels}
    assert recall_at_k(qrels, everything, 200) == 1


@pytest.mark.parametrize("name", ["ndgc@10", "recall", "ndcg@0", "ndcg@-1", "ndcg@ten", "", "P@1"])
def test_an_unknown_measure_is_an_error(name):
    with pytest.raises(SettingsError, match=r"measure .* (is not known|needs a cutoff)"):
        retrieval(ONE, FIRST, [name])


@pytest.mark.parametrize("k", [0, -1, 2.5, "10", True])
@pytest.mark.parametrize(
    "measure", [recall_at_k, accuracy_at_k, mrr_at_k, map_at_k, dcg_at_k, ndcg_at_k]
)
def test_a_cut_is_a_whole_number(measure, k):
    with pytest.raises(SettingsError, match="k must be an integer of at least 1"):
        measure(ONE, FIRST, k)


@pytest.mark.parametrize(
    ("qrels", "run", "message"),
    [
        ({"1": {"a": 1}}, {1: {"a": 1.0}}, "no query in common; the run has 1, the qrels '1'"),
        ({"q": {"a": 1}}, {"p": {"a": 1.0}}, "no query in common; the run has 'p'"),
        ({"q": {"1": 1}}, {"q": {1: 1.0}}, "document ids are int in the run and str in the qrels"),
    ],
)
def test_ids_of_two_sides_that_cannot_be_equal_are_an_error(qrels, run, message):
    """SILENT row 46: all scores were 0."""
    for measure in ("ndcg@10", "dcg_exponential"):
        with pytest.raises(DataError, match=message):
            retrieval(qrels, run, [measure])


def test_a_run_that_finds_nothing_scores_0():
    for run in ({}, {"q": {}}, {"q": {"b": 1.0}}):
        assert retrieval({"q": {"a": 1}}, run, ["map"]) == {"map": 0}


def test_bad_scores_grades_and_gains_are_errors():
    with pytest.raises(DataError, match="document 'b' has the score nan"):
        retrieval(ONE, {"q": {"a": 1.0, "b": math.nan}})
    with pytest.raises(DataError, match="document 'a' has the score inf"):
        mrr_at_k(ONE, {"q": {"a": math.inf}}, 10)
    for grade in (0.5, math.nan, math.inf):
        with pytest.raises(DataError, match=f"query 'q', document 'a': grade {grade}"):
            retrieval({"q": {"a": grade}}, FIRST)
    with pytest.raises(
        SettingsError, match=r"'exponentail' is not known. Did you mean 'exponential'"
    ):
        dcg([1], gain="exponentail")
    with pytest.raises(DataError, match="grade 2000 is too large for exponential gain"):
        dcg([1, 2000], gain="exponential")
    with pytest.raises(DataError, match="grades hold NaN or infinity"):
        dcg([1, math.nan])
    with pytest.raises(SettingsError, match="k must be an integer"):
        dcg([1, 2], 0)


@pytest.mark.parametrize(("grade", "score"), [("1", 1.0), (1, "9.5"), (1, "x")])
def test_grades_and_scores_that_are_strings_are_named(grade, score):
    """Strings would be ordered as words: "10" before "9"."""
    with pytest.raises(DataError, match=r"document 'a'.*expected (a finite number|an integer)"):
        retrieval({"q": {"a": grade}}, {"q": {"a": score, "b": 1.0}}, ["mrr@10"])
