"""Instructions: values by hand, and agreement with mteb."""

import random

import pytest

from polyvec.errors import DataError, SettingsError
from polyvec.evaluate.measures import ndcg_at_k, p_mrr, per_query, rank_change, robustness_at_k


def ranking(*documents):
    return {document: -float(i) for i, document in enumerate(documents)}


def test_p_mrr_by_hand():
    names = [f"d{i}" for i in range(10)]
    last = ranking(*names[1:], "d0")
    assert p_mrr({"q": ranking(*names)}, {"q": last}, {"q": ["d0"]}) == pytest.approx(0.9)
    assert p_mrr({"q": last}, {"q": ranking(*names)}, {"q": ["d0"]}) == pytest.approx(-0.9)
    assert p_mrr({"q": last}, {"q": last}, {"q": names}) == 0  # the instruction is ignored
    # Mean over the documents of a query, then over queries: d0 and d9 of q, d1 of p.
    original = {"q": ranking("d0", "d1", "d9"), "p": ranking("d0", "d1")}
    changed = {"q": ranking("d1", "d9", "d0"), "p": ranking("d1", "d0")}
    excluded = {"q": ["d0", "d9"], "p": ["d1"], "none": []}
    expected = ((2 / 3 + (2 / 3 - 1)) / 2 + (1 / 2 - 1)) / 2
    assert p_mrr(original, changed, excluded) == pytest.approx(expected)


def test_a_document_outside_a_run_stands_after_its_last():
    found = p_mrr({"q": ranking("a", "b")}, {"q": ranking("b", "c", "d")}, {"q": ["a"]})
    assert found == pytest.approx(1 - 1 / 4)
    assert p_mrr({"q": {}}, {"q": {}}, {"q": ["a"]}) == 0


def test_rank_change_is_odd_and_bounded():
    for before in range(1, 30):
        for after in range(1, 30):
            assert rank_change(before, after) == pytest.approx(-rank_change(after, before))
            assert -1 < rank_change(before, after) < 1
            # By reciprocal ranks, as the paper prints it.
            a, b = 1 / before, 1 / after
            expected = a / b - 1 if before >= after else 1 - b / a
            assert rank_change(before, after) == pytest.approx(expected)


@pytest.mark.parametrize("scores", [[0.5, 1.0, 2.0], [i / 7 for i in range(10_000)]])
def test_p_mrr_agrees_with_mteb(scores):
    mteb = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    draw = random.Random(0)
    names = [f"d{i}" for i in range(60)]
    runs = [
        {f"q{i}": {name: draw.choice(scores) for name in draw.sample(names, 40)} for i in range(8)}
        for _ in range(2)
    ]
    excluded = {query: draw.sample(names, draw.randint(0, 5)) for query in runs[0]}
    expected = mteb.calculate_pmrr(
        {f"{query}-og": documents for query, documents in runs[0].items()},
        {f"{query}-changed": documents for query, documents in runs[1].items()},
        excluded,
    )
    assert p_mrr(*runs, excluded) == pytest.approx(expected)


def test_robustness_agrees_with_mteb_and_is_the_worst_instruction():
    mteb = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    draw = random.Random(1)
    names = [f"d{i}" for i in range(30)]
    ids = [f"{query}_{i}" for query in range(6) for i in range(draw.randint(1, 4))]
    qrels = {id_: dict.fromkeys(draw.sample(names, 4), 1) for id_ in ids}
    run = {id_: {name: draw.random() for name in names} for id_ in ids}
    instances = {}
    for id_ in ids:
        instances.setdefault(id_.split("_")[0], []).append(id_)
    each = {id_: {"ndcg_cut_10": v} for id_, v in per_query(qrels, run, "ndcg@10").items()}
    expected = mteb.robustness_at_10(qrels, run, each)
    found = robustness_at_k(qrels, run, instances)
    assert found == pytest.approx(expected)
    assert found < ndcg_at_k(qrels, run, 10)
    alone = {id_: [id_] for id_ in ids}
    for k in (1, 5):
        assert robustness_at_k(qrels, run, alone, k) == pytest.approx(ndcg_at_k(qrels, run, k))


def test_errors_name_what_came():
    run = {"q": ranking("a")}
    with pytest.raises(DataError, match="query 'p' is missing from the original run"):
        p_mrr(run, run, {"p": ["a"]})
    with pytest.raises(DataError, match="query 'q' is missing from the changed run"):
        p_mrr(run, {}, {"q": ["a"]})
    with pytest.raises(DataError, match="none of 1 queries excludes a document"):
        p_mrr(run, run, {"q": []})
    with pytest.raises(DataError, match="query 'q': expected a list of documents, got a string"):
        p_mrr(run, run, {"q": "a"})
    with pytest.raises(DataError, match="document 'a' has the score nan"):
        p_mrr({"q": {"a": float("nan")}}, run, {"q": ["a"]})
    qrels = {"q": {"a": 1}}
    with pytest.raises(
        DataError, match=r"query 'x': expected ids that have judgements, got \['p'\]"
    ):
        robustness_at_k(qrels, run, {"x": ["q", "p"]})
    with pytest.raises(DataError, match=r"query 'x': expected ids that have judgements, got \[\]"):
        robustness_at_k(qrels, run, {"x": []})
    with pytest.raises(DataError, match="no queries, expected"):
        robustness_at_k(qrels, run, {})
    with pytest.raises(SettingsError, match="k must be an integer"):
        robustness_at_k(qrels, run, {"x": ["q"]}, 0)
