"""TextCompressor: what it keeps, what it refuses, in one clear line."""

import numpy as np
import pytest

from polyvec.compress.text.compressor import Coarse, TextCompressor
from polyvec.compress.text.document import Document
from polyvec.compress.text.scorer import per_unit
from polyvec.errors import InputError, PolyvecError, SettingsError

NANO = "polyvec/nano-lm"
TEXT = (
    "The sky was grey over the harbour. Ships came and went all day.\n\n"
    "The code of Ann is 4711. The code of Bob is 8192, as all know.\n\n"
    "Cats slept on the wall. Nobody talked about it."
)
QUESTION = "Where are the cats?"


def compressor(scorer="lexical", **settings):
    return TextCompressor(scorer, **{"unit": "word", "tokenizer": NANO, **settings})


def test_order_is_kept_and_pieces_are_of_the_original():
    found = compressor({"kind": "random", "seed": 3}).compress(TEXT, tokens=25)
    assert "".join(text for text, _ in found.parts()) == TEXT
    place = 0
    for text, kept in found.parts():
        if kept:
            place = found.text.index(text, place)
    assert found.num_tokens == 25 and found.num_tokens_in > 25


@pytest.mark.parametrize("unit", ["token", "word", "phrase", "sentence", "passage"])
def test_kept_words_and_digits_stay_whatever_their_score(unit):
    made = compressor("position", unit=unit, keep_words=["nobody"], keep_digits=True)
    found = made.compress(TEXT, tokens=60)
    for word in ("4711", "8192", "Nobody"):
        assert word in found.text


def test_a_context_that_fits_is_unchanged():
    found = compressor().compress(TEXT, QUESTION, tokens=1000)
    assert found.text == TEXT and found.rate == 1.0 and list(found.parts()) == [(TEXT, True)]


def test_a_threshold_keeps_what_reaches_it_and_may_leave_nothing():
    made = compressor(unit="sentence")
    assert made.compress(TEXT, QUESTION, threshold=0.2).text == "Cats slept on the wall."
    nothing = made.compress(TEXT, "Why do volcanoes erupt?", threshold=0.2)
    assert (nothing.text, nothing.num_tokens, nothing.kept) == ("", 0, ())
    both = made.compress(TEXT, "What is the code of Ann or Bob?", threshold=0.1, tokens=20)
    assert both.text == "The code of Ann is 4711."


def test_exact_fills_the_room_with_words_of_what_reaches_the_threshold():
    made = compressor(unit="sentence", exact=True)
    question = "What is the code of Ann or Bob?"
    found = made.compress(TEXT, question, threshold=0.1, tokens=16)
    assert found.num_tokens == 16 and found.text.startswith("The code of Ann is 4711. The code")
    assert "sky" not in made.compress(TEXT, question, threshold=0.1, tokens=60).text


def test_passages_are_what_was_given():
    texts = ["Rain fell. It was cold.", "The code is 7.", "Cats slept."]
    found = compressor(unit="passage").compress(texts, "What is the code?", tokens=10)
    assert found.text == "The code is 7."


def test_a_coarse_stage_leaves_whole_passages_to_the_next():
    texts = ["Rain fell. It was cold.", "The code is 7, and not 8.", "Cats slept all day."]
    made = compressor(
        "position", unit="word", coarse=[Coarse("lexical", unit="passage")], order="score"
    )
    found = made.compress(texts, "What is the code?", tokens=5)
    assert found.text.startswith("The code is") and found.num_tokens == 5
    assert found.original[slice(*found.kept[0])] in found.text


def test_order_by_score_puts_the_best_passage_first():
    texts = ["Cold rain fell on us.", "Cats slept.", "The code of the box is 7."]
    coarse = [Coarse("lexical", unit="passage", factor=9.0)]
    made = compressor("position", coarse=coarse, order="score")
    found = made.compress(texts, "What is the code of the box?", rate=0.9)
    assert found.text.startswith("The code of the box")
    assert found.kept[0][0] == 0  # of the original, in its order


def test_better_passages_keep_more_with_a_dynamic_ratio():
    texts = [f"The {'code' if i == 1 else 'sky'} " + "word " * 40 for i in range(3)]
    coarse = [Coarse("lexical", unit="passage", factor=9.0)]

    def shares(ratio):
        made = compressor("random", coarse=coarse, dynamic_ratio=ratio)
        found = made.compress(texts, "Which code?", rate=0.5)
        return [len(part.split()) for part in found.text.split("\n\n")]

    even, tilted = shares(0.0), shares(0.4)
    assert max(even) - min(even) <= 12
    assert tilted[1] > tilted[0] + 10 and sum(tilted) == pytest.approx(sum(even), abs=6)


def test_a_function_and_a_custom_counter_are_enough():
    def longest(units, question):
        return [len(unit) for unit in units]

    made = TextCompressor(longest, tokenizer=lambda text: len(text.split()))
    found = made.compress("a bb ccc dddd eeeee", tokens=2)
    assert found.text == "dddd eeeee" and found.num_tokens == 2


def test_values_of_tokens_are_averaged_over_units():
    spans, values = [(0, 3), (3, 7), (7, 8)], np.array([1.0, 2.0, 6.0])
    assert per_unit(spans, values, [(0, 3), (4, 8)]).tolist() == [1.0, 4.0]
    assert per_unit(spans, values, [(0, 3), (4, 8)], "sum").tolist() == [1.0, 8.0]
    assert per_unit(spans, values, [(0, 3), (4, 8)], "max").tolist() == [1.0, 6.0]
    # Units within one token have its value.
    assert per_unit([(0, 6)], np.array([5.0]), [(0, 2), (3, 5)]).tolist() == [5.0, 5.0]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("", {"tokens": 5}, "context is empty"),
        (["", " \n"], {"tokens": 5}, "context is empty"),
        ([], {"tokens": 5}, "context is empty"),
        (["a", 3], {"tokens": 5}, r"texts\[1\] is int"),
        ("a \ud800", {"tokens": 5}, "lone surrogate"),
        (TEXT, {"tokens": 0}, "tokens is 0, expected a whole number from 1"),
        (TEXT, {"tokens": -3}, "tokens is -3"),
        (TEXT, {"tokens": 2.5}, "tokens is 2.5"),
        (TEXT, {"tokens": True}, "tokens is True"),
        (TEXT, {"rate": 0.0}, "rate is 0.0"),
        (TEXT, {"rate": 1.5}, "rate is 1.5"),
        (TEXT, {"rate": float("nan")}, "rate is nan"),
        (TEXT, {"rate": 0.5, "tokens": 5}, "not both"),
        (TEXT, {"rate": "0.5"}, "rate is '0.5'"),
        (TEXT, {"threshold": float("nan")}, "threshold is nan, expected a number"),
        (None, {"tokens": 5}, "texts is NoneType, expected a text or a list"),
        ({"a": TEXT}, {"tokens": 5}, "texts is dict"),
        ({TEXT}, {"tokens": 5}, "texts is set"),
        (TEXT, {}, "give a budget"),
        (TEXT, {"tokens": 3}, "question has . tokens, more than the budget of 3"),
    ],
)
def test_bad_input_is_one_clear_line(texts, options, message):
    with pytest.raises(InputError, match=message) as caught:
        compressor().compress(texts, QUESTION, **options)
    assert "\n" not in str(caught.value)


def test_texts_may_come_from_a_generator():
    found = compressor().compress((each for each in [TEXT, TEXT]), QUESTION, tokens=9)
    assert found.original == f"{TEXT}\n\n{TEXT}"


def test_a_question_that_is_no_text_is_told():
    for question, message in ((["a"], "question is list"), ("a\ud800", "lone surrogate")):
        with pytest.raises(InputError, match=message):
            compressor().compress(TEXT, question, tokens=9)


def test_a_word_to_keep_that_is_not_there_is_noted():
    found = compressor(keep_words=["zebra", "cats"]).compress(TEXT, QUESTION, tokens=9)
    assert found.notes == ("to keep, but not in the text: 'zebra'",)


@pytest.mark.parametrize("counted", [None, -1, float("nan"), "5"])
def test_a_counter_that_gives_no_number_is_told(counted):
    given = TextCompressor("random", tokenizer=lambda text: counted)
    with pytest.raises(InputError, match="expected a number"):
        given.compress(TEXT, tokens=9)


def test_a_question_or_an_answer_that_is_missing_is_told():
    with pytest.raises(InputError, match="Lexical compresses for a question"):
        compressor().compress(TEXT, tokens=9)
    with pytest.raises(InputError, match="StringInclusion is an oracle"):
        compressor("string_inclusion").compress(TEXT, QUESTION, tokens=9)
    with pytest.raises(InputError, match="no sentence fits into 3 tokens"):
        compressor("random", unit="sentence").compress(TEXT, tokens=3)
    with pytest.raises(InputError, match=r"to keep have .* more than the budget of 3"):
        compressor("random", keep_digits=True).compress(TEXT, tokens=3)


@pytest.mark.parametrize(
    ("scorer", "settings", "message"),
    [
        ("selfinformation", {}, "Did you mean 'self_information'"),
        ({"model": "x"}, {}, "expected a kind"),
        ({"kind": "random", "sed": 1}, {}, "setting 'sed' is not known"),
        ("random", {"unit": "line"}, "unit 'line' is not known"),
        ("random", {"dynamic_ratio": 0.3}, "needs a coarse stage"),
        ("random", {"keep_words": "abc"}, "expected a list"),
        ("random", {"keep_words": [" "]}, "is no word"),
        ("random", {"keep_words": [5]}, "is no word"),
        ("random", {"keep_words": None}, "expected a list"),
        ("random", {"order": "best"}, "order is 'best'"),
        ({"kind": "self_information", "segment": 1}, {}, "segment 1 is below 2"),
        ({"kind": "llm", "prompt": "yes or no?"}, {}, "no slot {text}"),
    ],
)
def test_wrong_settings_are_told_before_anything_loads(scorer, settings, message):
    with pytest.raises(SettingsError, match=message):
        compressor(scorer, **settings)


def test_scores_of_a_wrong_shape_or_not_finite_are_refused():
    for function, message in (
        (lambda units, question: [1.0], "shape"),
        (lambda units, question: ["good"] * len(units), "gave list, expected a number"),
        (lambda units, question: [[1], [1, 2]], "expected a number for each unit"),
        (lambda units, question: [1j] * len(units), "expected a number for each unit"),
        (lambda units, question: [np.nan] * len(units), "not finite"),
    ):
        with pytest.raises(PolyvecError, match=message):
            compressor(function).compress(TEXT, tokens=9)


def test_the_oracle_keeps_the_answer_and_what_is_near_it():
    found = compressor("string_inclusion").compress(TEXT, answer="8192", tokens=8)
    assert found.text == "Bob is 8192, as"
    document = Document(TEXT, ((0, len(TEXT)),), ((0, 34),))
    assert document.pieces() == ["The sky was grey over the harbour."]


def test_a_graph_of_words_leads_from_the_question():
    found = compressor("graph", unit="sentence").compress(TEXT, "What about Bob?", tokens=22)
    assert "8192" in found.text
