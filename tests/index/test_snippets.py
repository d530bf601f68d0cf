"""The part of a text that is shown for a query."""

import pytest

from polyvec.index.snippets import snippet

LONG = (
    "The harbour was quiet. Nobody spoke for a while, and the boats lay still in the mist.\n"
    "Then the violins began: a slow tune of the river, which everybody knew. "
    + "It went on and on. "
    * 20
)


def marked(found):
    return [found.text[start:end] for start, end in found.marks]


def test_the_stretch_with_most_of_the_words_is_shown():
    found = snippet(LONG, "what violin plays of the river?", 60)
    assert found.text == "Then the violins began: a slow tune of the river, which"
    assert marked(found) == ["violins", "river"]


def test_without_the_words_it_is_the_first_line():
    found = snippet("\n\n  first line\nsecond", "zebra the a")
    assert (found.text, found.marks) == ("first line", ())
    assert snippet("", "a").text == snippet(" \n ", "word").text == ""


@pytest.mark.parametrize("width", [5, 20, 100, 10_000])
def test_marks_are_the_words(width):
    for query in ("boats", "mists and rivers", "on", LONG):
        found = snippet(LONG, query, width)
        assert len(found.text) <= width
        assert all(word in LONG for word in marked(found))


def test_nothing_that_controls_a_terminal_is_shown():
    found = snippet("a \x1b[31mred\nkitten", "kittens")
    assert found.text == "a  [31mred kitten"
    assert marked(found) == ["kitten"]
