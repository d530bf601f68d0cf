"""Slices, worst items and labels, worked by hand."""

import numpy as np
import pytest
from report_examples import mean

from polyvec.evaluate.outcome import Item, Outcome
from polyvec.evaluate.report.slices import (
    Worst,
    is_agreement,
    length_slices,
    lengths,
    separation,
    worst,
    worst_labels,
)
from polyvec.evaluate.significance import spearman


def queries(values, texts=None) -> Outcome:
    texts = texts or [f"q{i}" for i in range(len(values))]
    items = tuple(
        Item(str(i), (text,), value)
        for i, (text, value) in enumerate(zip(texts, values, strict=True))
    )
    return Outcome("retrieval", "ndcg@10", {"ndcg@10": float(np.mean(values))}, items)


def pairs(values, gold, texts=None) -> Outcome:
    texts = texts or [("a", "b")] * len(values)
    items = tuple(
        Item(str(i), two, v, g)
        for i, (two, v, g) in enumerate(zip(texts, values, gold, strict=True))
    )
    return Outcome("sts", "spearman", {"spearman": 0.0}, items)


def test_quartiles_of_eight_lengths():
    """Lengths 1 to 8: quartiles 2.75, 4.5 and 6.25, so two queries a slice."""
    outcome = queries([0, 1, 0.5, 0.5, 1, 1, 0.2, 0.4], [" ".join("w" * n) for n in range(1, 9)])
    found, unit = length_slices(outcome)
    assert unit == "words"
    assert [(one.low, one.high, one.num_items) for one in found] == [
        (1, 2, 2),
        (3, 4, 2),
        (5, 6, 2),
        (7, 8, 2),
    ]
    assert [one.score for one in found] == pytest.approx([0.5, 0.5, 1.0, 0.3])
    assert all(one.interval is None for one in found)


def test_equal_lengths_stay_together():
    """Ten queries of 3 words and two of 9: quartiles are all 3, so there are two slices."""
    texts = ["a b c"] * 10 + ["a b c d e f g h i"] * 2
    found, _ = length_slices(queries([1.0] * 10 + [0.0] * 2, texts))
    assert [(one.low, one.high, one.num_items, one.score) for one in found] == [
        (3, 3, 10, 1.0),
        (9, 9, 2, 0.0),
    ]
    assert length_slices(queries([0.5] * 12, ["a b c"] * 12))[0] == ()


def test_pairs_are_sliced_by_spearman_and_by_both_texts():
    """Short pairs in order (1), long ones in reverse (-1)."""
    texts = [("w", "w")] * 4 + [("w w w", "w w w w")] * 4
    found, _ = length_slices(pairs([1, 2, 3, 4, 4, 3, 2, 1], [1, 2, 3, 4, 1, 2, 3, 4], texts))
    assert [(one.low, one.high) for one in found] == [(2, 2), (7, 7)]
    assert [one.score for one in found] == pytest.approx([1, -1])


def test_a_slice_with_equal_gold_scores_is_no_number():
    texts = [("w", "w")] * 4 + [("w w w", "w")] * 4
    found, _ = length_slices(pairs([1, 2, 3, 4, 1, 2, 3, 4], [2, 2, 2, 2, 1, 2, 3, 4], texts))
    assert np.isnan(found[0].score) and found[1].score == pytest.approx(1)


def test_the_outcomes_own_statistic_makes_the_slices():
    outcome = queries([0.0] * 8, [" ".join("w" * n) for n in range(1, 9)])
    own = Outcome(
        "bitext", "f1", {"f1": 0.0}, outcome.items, np.arange(8.0)[:, None], lambda r: r.sum()
    )
    assert [one.score for one in length_slices(own)[0]] == [1, 5, 9, 13]
    other = Outcome("x", "f1", {"f1": 0.0}, outcome.items, np.arange(3.0)[:, None], mean)
    assert [one.score for one in length_slices(other)[0]] == [0, 0, 0, 0]


def test_scripts_without_spaces_are_measured_in_characters():
    items = [Item("1", ("猫は一日に十六時間眠ります、と本に書いてあります。",), 1.0)]
    length, unit = lengths(items)
    assert (length.tolist(), unit) == ([len(items[0].texts[0])], "characters")
    assert lengths([Item("1", ("Donaudampfschifffahrt ist lang",), 1.0)])[1] == "words"


def test_a_querys_length_is_without_what_should_be_found():
    items = [Item("1", ("two words", "a document of five words"), 0.5, None, (("d", "t", 1, 0),))]
    assert lengths(items)[0].tolist() == [2]


def test_the_worst_pairs_are_those_whose_ranks_differ_most():
    """Ranks of similarity 4 1 2 3 and of gold 1 2 3 4: places 100, 0, 33, 67 and 0, 33, 67, 100."""
    found = worst(pairs([0.9, 0.1, 0.2, 0.3], [1, 2, 3, 4]))
    assert [one.item.id for one in found] == ["0", "1", "2", "3"]
    assert (found[0].similarity_place, found[0].gold_place) == (100, 0)
    assert found[1].similarity_place == 0 and found[1].gold_place == pytest.approx(100 / 3)
    assert worst(pairs([1, 2, 3], [10, 20, 30])) == ()


def test_the_worst_queries_are_the_lowest_and_of_equals_the_surest():
    def query(name, value, *found):
        return Item(name, ("q",), value, None, found)

    items = (
        query("perfect", 1.0, ("d", "t", 0.9, 1)),
        query("half", 0.5, ("d", "t", 0.9, 1)),
        query("unsure", 0.0, ("d", "t", 0.2, 0)),
        query("sure", 0.0, ("d", "t", 0.8, 0)),
        query("no value", float("nan"), ("d", "t", 0.8, 0)),
    )
    outcome = Outcome("retrieval", "ndcg@10", {"ndcg@10": 0.5}, items)
    assert [one.item.id for one in worst(outcome)] == ["sure", "unsure", "half"]
    assert [one.item.id for one in worst(outcome, num=1)] == ["sure"]


def test_one_item_and_none():
    assert worst(pairs([0.3], [4.0])) == (Worst(pairs([0.3], [4.0]).items[0]),)
    assert worst(Outcome("clustering", "v", {"v": 0.5})) == ()
    assert length_slices(Outcome("clustering", "v", {"v": 0.5})) == ((), "words")
    assert not is_agreement(())


def test_labels_by_their_mean():
    def text(label, value, said):
        return Item("1", ("t",), value, label, ((said, "", 1.0, int(said == label)),))

    items = (
        text("a", 0.0, "b"),
        text("a", 0.5, "c"),
        text("a", 0.1, "c"),
        text("b", 1.0, "b"),
        text("b", 1.0, "b"),
        text("c", 0.0, "c"),
    )
    found = worst_labels(Outcome("classification", "accuracy", {"accuracy": 0.4}, items))
    assert [(one.label, one.num_items, one.taken_for) for one in found] == [
        ("c", 1, ""),
        ("a", 3, "c"),
    ]
    assert found[1].score == pytest.approx(0.2)
    assert worst_labels(queries([0.0, 0.5])) == ()


def test_separation_by_hand():
    """Of six couples 0.9 and 0.5 win against 0.1, 0.9 against 0.7, and 0.5 ties with 0.5."""
    found = separation(np.array([0.9, 0.5]), np.array([0.1, 0.5, 0.7]))
    assert found == pytest.approx((1 + 1 + 1 + 1 + 0.5 + 0) / 6)
    assert spearman(np.array([[1.0, 1], [2, 2]])) == pytest.approx(1)
