"""A text in units, and the text of those that are kept."""

import random
from itertools import pairwise

import numpy as np
import pytest

from polyvec.compress.text.document import Compressed, Document
from polyvec.compress.text.joining import Joiner
from polyvec.compress.text.tokens import TokenCounter
from polyvec.compress.text.units import UNITS, passages, phrases, sentences, words
from polyvec.compress.text.view import View

TEXTS = [
    "Dr. Wu's dog (a 3.5 kg pug) barked at 10:30!! Why? See https://a.org/b?c=1.",
    "One line\nand another.\n\nA paragraph; it isn't long.\n \n  Third.",
    "漢字とかな。次の文！ English between. 終わり",
    "  leading spaces, and trailing  ",
    "e.g. this, i.e. that, and J. R. Smith's U.S. case No. 5 of the A. B. firm. Done.",
]


def pieces(text, spans):
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("text", TEXTS)
def test_units_are_all_of_the_text_but_white_space(unit, text):
    spans = UNITS[unit](text)
    assert "".join("".join(pieces(text, spans)).split()) == "".join(text.split())
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert all(piece.strip() == piece != "" for piece in pieces(text, spans))


def test_sentences_end_at_marks_and_lines_and_not_at_abbreviations():
    assert pieces(TEXTS[4], sentences(TEXTS[4])) == [TEXTS[4][:-6], "Done."]
    assert pieces(TEXTS[1], sentences(TEXTS[1])) == [
        "One line",
        "and another.",
        "A paragraph; it isn't long.",
        "Third.",
    ]
    assert pieces(TEXTS[2], sentences(TEXTS[2]))[:2] == ["漢字とかな。", "次の文！"]


def test_sentences_end_in_other_scripts_too():
    for text in ("यह घर है। वह बड़ा है।", "أين البيت؟ هنا.", "یہ گھر ہے۔ وہ بڑا ہے۔"):
        assert len(sentences(text)) == 2


def test_words_keep_numbers_contractions_and_addresses_whole():
    found = pieces(TEXTS[0], words(TEXTS[0]))
    for word in ("Wu's", "3.5", "10:30", "!!", "https://a.org/b?c=1."):
        assert word in found


@pytest.mark.parametrize(
    "text",
    [
        "हिन्दी भाषा",
        "مُحَمَّد هنا",
        "שָׁלוֹם עולם",
        "தமிழ் மொழி",
        "Cafe\u0301 naïve",  # an accent of its own
        "👩\u200d👩\u200d👧\u200d👦 👍🏽 🇩🇪 ❤\ufe0f",
        "می\u200cخواهم رفت",  # joined by a zero-width non-joiner
        "... !!! — “ ”",
    ],
)
def test_signs_and_emoji_stay_with_what_they_belong_to(text):
    assert [text[a:b] for a, b in words(text)] == text.split()


def test_a_phrase_is_a_determiner_with_content_words():
    text = "The very old stone bridge fell into the cold river."
    assert pieces(text, phrases(text)) == [
        "The",
        "very",
        "old stone bridge fell",
        "into",
        "the cold river",
        ".",
    ]


def test_passages_are_separated_by_empty_lines():
    assert len(passages(TEXTS[1])) == 3


def test_dropped_text_leaves_its_strongest_separator():
    text = "one two three\nfour five\n\nsix sev-en"
    spans = [(m, n) for m, n in words(text)]
    joiner = Joiner(Document(text, ((0, len(text)),), tuple(spans)))

    def kept(*names):
        return joiner.join(np.array([text[a:b] in names for a, b in spans]))

    assert kept("one", "three") == "one three"
    assert kept("one", "four") == "one\nfour"
    assert kept("one", "six") == "one\n\nsix"
    assert kept() == ""
    assert joiner.join(np.ones(len(spans), bool)) == text
    pieces_of_words = Joiner(Document("unbelievable", ((0, 12),), ((0, 2), (2, 8), (8, 12))))
    assert pieces_of_words.join(np.array([True, False, True])) == "unable"


def test_a_narrowed_view_knows_where_its_characters_were():
    texts = ["alpha beta gamma", "delta epsilon", "zeta eta"]
    view = View.whole(texts, "\n\n")
    document = Document(view.text, view.passages, tuple(words(view.text)))
    kept_U = np.array([True, False, True, False, False, False, True])
    narrow = view.narrowed(document, kept_U)
    assert narrow.text == "alpha gamma\n\neta"
    assert [narrow.text[a:b] for a, b in narrow.passages] == ["alpha gamma", "eta"]
    for start, end in words(narrow.text):
        ((a, b),) = narrow.spans_in_original([(start, end)])
        assert view.text[a:b] == narrow.text[start:end]


def test_tokens_are_spans_of_the_text_without_its_white_space():
    counter = TokenCounter.load("polyvec/nano-lm")
    draw = random.Random(0)
    for _ in range(50):
        text = "".join(draw.choice("ab é漢🎉 \n.,1") for _ in range(40))
        spans = counter.spans(text)
        assert "".join(text[a:b] for a, b in spans) == "".join(text.split())
        costs = counter.costs(text, tuple(spans))
        assert costs.sum() >= len(spans)


def test_an_answer_is_put_back_into_the_words_of_the_original():
    original = "It was built by Ada King of Lovelace in 1843, it is said."
    kept = ((13, 24), (28, 36), (40, 44))
    found = Compressed("by Ada King Lovelace 1843", original, kept, 20, 8)
    assert found.recover("By Ada King Lovelace!") == "by Ada King of Lovelace!"
    assert found.recover("nobody") == "nobody"
    assert "".join(text for text, _ in found.parts()) == original
