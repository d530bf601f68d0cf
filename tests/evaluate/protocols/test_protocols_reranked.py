"""A reranker behind retrieval: what it reads, and what it gains."""

import numpy as np
import pytest

from polyvec.data.tasks.sets import RetrievalSet
from polyvec.errors import DataError
from polyvec.evaluate.tasks import Evaluator, check_reranked
from polyvec.rerank.reranker import Reranker


class Knows(Reranker):
    """Scores a document by how many of the query's letters begin it."""

    def __init__(self):
        self.read = []

    def scores(self, pairs, instructions=None):
        self.read += pairs
        return np.array([float(document.startswith(query[0])) for query, document in pairs])


@pytest.fixture
def data():
    corpus = {f"d{i}": text for i, text in enumerate(["a cat", "b sea", "c dogs", "d tree", "e"])}
    queries = {"q1": "c animal", "q2": "d plants"}
    qrels = {"q1": {"d2": 1}, "q2": {"d3": 1}}
    return RetrievalSet("toy", "test", corpus, queries, qrels)


def test_a_perfect_reranker_gains_the_rest(data, minilm):
    before = Evaluator(minilm).measure(data).result
    reranker = Knows()
    found = Evaluator(minilm, reranker=reranker).measure(data)
    scores = found.result.scores
    assert scores["ndcg@10"] == 1.0
    assert scores["ndcg@10_before"] == before.scores["ndcg@10"]
    assert scores["ndcg@10_gain"] == pytest.approx(1.0 - before.scores["ndcg@10"])
    assert len(reranker.read) == 10
    assert [item.found[0][0] for item in found.outcome.items] == ["d2", "d3"]
    for item in found.outcome.items:
        shown = [score for _, _, score, _ in item.found]
        assert shown == sorted(shown, reverse=True)
    assert scores["recall@10"] == before.scores["recall@10"]
    assert "ndcg@10_before" not in before.scores


def test_it_reads_the_best_alone(data, minilm):
    reranker = Knows()
    found = Evaluator(minilm, reranker=reranker, rerank_depth=1).measure(data).result
    assert len(reranker.read) == 2
    assert found.scores["ndcg@10_gain"] == 0.0


def test_candidates_are_reranked_too(data, minilm):
    listed = RetrievalSet(
        "toy", "test", data.corpus, data.queries, data.qrels,
        candidates={"q1": ("d0", "d1", "d2"), "q2": ("d3", "d4")},
    )  # fmt: skip
    found = Evaluator(minilm, reranker=Knows()).measure(listed).result
    assert found.main_score == 1.0 and found.scores["map_gain"] >= 0


def test_other_tasks_are_refused(minilm):
    from polyvec.data.tasks.sets import BitextMiningSet

    other = BitextMiningSet("toy", "test", ("a",), ("b",), ((0, 0),))
    with pytest.raises(DataError, match=r"toy: a task of kind bitext_mining is not reranked"):
        check_reranked(other)
