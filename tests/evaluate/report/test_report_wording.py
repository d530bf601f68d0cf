"""How numbers and texts are written."""

import pytest

from polyvec.evaluate.report import wording


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ndcg@10", "nDCG@10"),
        ("map", "MAP"),
        ("map@100", "MAP@100"),
        ("spearman", "Spearman"),
        ("cosine_spearman", "cosine Spearman"),
        ("original_ndcg@10", "original nDCG@10"),
        ("max_ap", "max AP"),
        ("f1_weighted", "F1, weighted"),
        ("p_mrr", "p-MRR"),
        ("v_measure", "V-measure"),
        ("something_new", "something_new"),
    ],
)
def test_measures_are_named_as_the_field_names_them(name, shown):
    assert wording.measure_name(name) == shown


def test_scores_have_two_decimals_and_no_negative_zero():
    assert wording.points(0.64514) == "64.51"
    assert wording.points(-0.00001) == "0.00" and wording.signed(-0.00001) == "+0.00"
    assert wording.signed(-0.0163) == "-1.63"
    assert wording.points(None) == wording.points(float("nan")) == wording.signed(None) == "–"
    assert wording.between((0.1, 0.2)) == "10.00 to 20.00" and wording.between(None) == ""


def test_shares_and_times():
    assert wording.percent(0.0004) == "under 0.1 %" and wording.percent(0) == "0.0 %"
    assert wording.percent(0.296) == "29.6 %"
    times = [wording.duration(s) for s in (4.2, 59.99, 185, 7620, float("nan"))]
    assert times == ["4.2 s", "60.0 s", "3 min 05 s", "2 h 07 min", "–"]
    assert wording.number_of(1, ("query", "queries")) == "1 query"
    assert wording.number_of(2000, ("query", "queries")) == "2,000 queries"


def test_long_texts_end_at_a_word_with_an_ellipsis():
    text = "word " * 100
    assert wording.cut(text, 20) == "word word word word…"
    assert len(wording.cut("x" * 10_000)) == 300 and wording.cut("x" * 10_000).endswith("x…")
    assert wording.cut("short\n\ttext ") == "short text"
    assert wording.cut("Ends here. " * 30, 23) == "Ends here. Ends here…"
    assert wording.cut(" " * 5000 + "late") == "…"


def test_characters_that_hide_or_reorder_become_visible():
    assert wording.clean("a\x00b\u202ec\ud800d") == "a\ufffdb\ufffdc\ufffdd"
    assert wording.clean("שלום \u200f 漢字") == "שלום \u200f 漢字"


def test_every_kind_and_figure_has_its_words():
    assert wording.kind_names("pair_classification") == ("Pair classification", "pair", "pairs")
    assert wording.kind_names("my own kind") == ("My own kind", "item", "items")
    for name, meaning, good in wording.GEOMETRY.values():
        assert name and meaning and good.split()[-1] in ("higher", "lower", "0")
