"""What every reranker does with odd input, and with little time."""

import time

import numpy as np
import pytest

from polyvec.errors import InputError, ModelError, SettingsError
from polyvec.rerank.reranker import Budgeted, Reranker
from polyvec.rerank.table import RERANKERS, load_reranker, names


class ByLength(Reranker):
    """The longest document first; one that says "nan" has no score."""

    def __init__(self, seconds=0.0):
        self.seconds, self.num_read = seconds, 0

    def scores(self, pairs, instructions=None):
        self.num_read += len(pairs)
        time.sleep(self.seconds * len(pairs))
        return np.array([np.nan if d == "nan" else len(d) for _, d in pairs], np.float32)


def test_documents_come_best_first_and_ties_as_they_came():
    assert ByLength().rank("q", ["a", "ccc", "b", "bb"]) == [(1, 3.0), (3, 2.0), (0, 1.0), (2, 1.0)]
    assert ByLength().rank("q", []) == []
    assert ByLength().rank("q", ["one"]) == [(0, 3.0)]


def test_equal_documents_are_read_once():
    model = ByLength()
    assert model.rank("q", ["a", "bb", "a"]) == [(1, 2.0), (0, 1.0), (2, 1.0)]
    assert model.num_read == 2


def test_odd_input_is_one_line():
    for query in ("", "  \n"):
        with pytest.raises(InputError, match="the query is empty"):
            ByLength().rank(query, ["a"])
    with pytest.raises(InputError, match="documents is a string"):
        ByLength().rank("q", "abc")
    with pytest.raises(InputError, match=r"inputs\[1\] is NoneType"):
        ByLength().rank("q", ["a", None])
    with pytest.raises(ModelError, match="query 'q' and document 'nan' is NaN"):
        ByLength().rank("q", ["a", "nan"])
    with pytest.raises(ModelError, match="query 'q' and document 'nan' is NaN"):
        Budgeted(ByLength(), 9).rank("q", ["a", "nan"])


def test_with_time_enough_a_budget_changes_nothing():
    documents = ["x" * (n * 7 % 11) for n in range(30)]
    model = Budgeted(ByLength(), 60, block=4)
    assert model.rank("q", documents) == ByLength().rank("q", documents)
    assert (model.num_read, model.num_given) == (30, 30)
    assert model.rank("q", []) == []


def test_when_time_is_up_the_rest_keeps_its_order():
    documents = ["x" * n for n in range(1, 41)]
    model = Budgeted(ByLength(seconds=0.02), 0.3, block=5)
    began = time.perf_counter()
    found = model.rank("q", documents)
    assert time.perf_counter() - began < 0.6
    num = model.num_read
    assert 5 <= num <= 15 and num % 5 == 0 and model.num_given == 40
    assert [place for place, _ in found] == [*range(num - 1, -1, -1), *range(num, 40)]
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 40
    # One block is read whatever the time.
    assert [place for place, _ in Budgeted(ByLength(0.01), 1e-9, block=2).rank("q", documents)][
        :3
    ] == [1, 0, 2]


def test_rerankers_are_found_by_name():
    assert names() == [
        "cross_encoder", "late_interaction", "listwise", "query_likelihood", "true_false"
    ]  # fmt: skip
    for kind in names():
        RERANKERS.find(kind)
    found = load_reranker({"kind": "true_false", "model": "polyvec/nano-t5", "seconds": 2})
    assert isinstance(found, Budgeted) and found.seconds == 2.0
    with pytest.raises(SettingsError, match=r"'cross_encodr' is not known.*cross_encoder"):
        load_reranker({"kind": "cross_encodr"})
    with pytest.raises(SettingsError, match="setting 'model' is missing"):
        load_reranker({"kind": "cross_encoder"})
    with pytest.raises(SettingsError, match="seconds is 0"):
        load_reranker({"kind": "true_false", "model": "polyvec/nano-t5", "seconds": 0})
