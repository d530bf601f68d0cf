"""Content words: as NLTK's word tokenizer splits them, without its stop words and punctuation."""

import pytest

from polyvec.embed.inputs.content_words import STOP_WORDS, content_words


# Values by NLTKWordTokenizer of nltk 3.10.4.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The quick brown fox jumps over the lazy dog.", "quick brown fox jumps lazy dog"),
        (
            "A well-known 3.5% rise, and/or $5 (five) cost!",
            "well-known 3.5 rise and/or 5 five cost",
        ),
        ("He said \"hello there\" and don't can't it's", "said `` hello '' n't ca n't 's"),
        ("1,000 items in 2020's -- fast... isn't it?", "1,000 items 2020 's -- fast ... n't"),
        ("Über naïve café 漢字", "über naïve café 漢字"),
        ("the u.s. model, e.g., cannot stop at 10:30", "u.s. model e.g. stop 10:30"),
        ("made in the u.s.", "made u.s"),
        ("the and of", ""),
    ],
)
def test_words_are_split_as_in_nltk(text, expected):
    assert content_words(text) == expected.split()


def test_the_list_has_179_words():
    assert len(STOP_WORDS) == 179
