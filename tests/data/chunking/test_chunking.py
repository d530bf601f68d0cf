"""Chunks are stretches of their document, whatever the text; nothing but white space is lost."""

from itertools import pairwise

import pytest

from polyvec.data.chunking import CHUNKERS, HEADERS, Chunker, chunks, load_chunker
from polyvec.data.chunking.tokens import word_spans
from polyvec.data.texts import Record
from polyvec.errors import DataError, SettingsError

FAMILY = "👩‍👩‍👧"
TEXTS = {
    "plain": "Cats purr. Dogs bark! " * 30,
    "lines": "one line\r\nanother\r\n\r\n  a paragraph of its own, which is longer.\r\n\r\n" * 9,
    "emoji": f"{FAMILY}🎉 fun {FAMILY}{FAMILY}🇫🇷 " * 20,
    "accents": "cafe\u0301 na\u0308ive " * 40,
    "no spaces": "abcdefghij" * 90,
    "one long word": "x" * 1000,
    "Chinese": "猫会叫。狗也会叫！它们住在一起,很高兴。" * 20,
    "marks": "... --- !!! ???\n" * 30,
    "zero width": "\u200b\u200b\u200b",
    "tabs": "\t\t a \x0b b \u00a0 c \u2003 " * 30,
    "one letter": "a",
}
KINDS = [
    {"kind": kind, "size": size, "overlap": overlap}
    for kind in CHUNKERS
    for size, overlap in ((1, 0), (7, 2), (50, 10), (1000, 0))
]


def bytes_of(text):
    """As a byte-level tokenizer: a token for each byte, several in one place."""
    return [(i, i + 1) for i, char in enumerate(text) for _ in char.encode()]


def with_space(text):
    """As sentencepiece: a token begins at the space before its word."""
    return [(max(a - 1, 0) if a and text[a - 1] == " " else a, b) for a, b in word_spans(text)]


@pytest.mark.parametrize("token_spans", [None, bytes_of, with_space])
@pytest.mark.parametrize("table", KINDS, ids=lambda each: "-".join(map(str, each.values())))
def test_a_chunk_is_its_range_of_the_document(table, token_spans):
    chunker = load_chunker(table, token_spans)
    for name, text in TEXTS.items():
        found = list(chunker.chunks(Record(name, text)))
        assert [each.id for each in found] == [f"{name}#{i}" for i in range(len(found))]
        covered = set()
        for each in found:
            assert each.document == name
            assert text[each.start : each.end] == each.text == each.text.strip() != ""
            covered.update(range(each.start, each.end))
        missed = [char for place, char in enumerate(text) if place not in covered]
        assert not "".join(missed).strip(), (name, missed)
        starts = [each.start for each in found]
        assert starts == sorted(set(starts)), "each chunk begins after the one before"
        assert all(a.end < b.end for a, b in pairwise(found))
        if table["overlap"] == 0:
            assert all(a.end <= b.start for a, b in pairwise(found))


@pytest.mark.parametrize("kind", CHUNKERS)
@pytest.mark.parametrize("text", ["", " ", "\r\n \t\u3000"])
def test_a_blank_document_has_no_chunks(kind, text):
    assert list(chunks([Record("d", text)], load_chunker({"kind": kind}))) == []


@pytest.mark.parametrize("kind", CHUNKERS)
def test_a_chunk_has_at_most_its_size(kind):
    chunker = load_chunker({"kind": kind, "size": 20, "overlap": 3})
    for name, text in TEXTS.items():
        if name == "emoji":
            continue  # a family that is cut off from its neighbours is read as other words
        for each in chunker.chunks(Record("d", text)):
            assert len(word_spans(each.text)) <= 20


def test_emoji_and_letters_with_marks_stay_whole():
    for kind in CHUNKERS:
        for text in (FAMILY * 9, "e\u0301" * 9):
            for each in load_chunker({"kind": kind, "size": 1}, bytes_of).chunks(Record("", text)):
                assert each.text in (FAMILY, "e\u0301")


def texts_of(text, **table):
    return [each.text for each in load_chunker(table).chunks(Record("d", text))]


def test_fixed_windows_overlap_by_tokens():
    assert texts_of("a b c d e", kind="fixed", size=3, overlap=1) == ["a b c", "c d e"]
    assert texts_of("a b c d e f", kind="fixed", size=3) == ["a b c", "d e f"]


def test_sentences_overlap_by_sentences():
    text = "One two. Three four. Five six. Seven."
    assert texts_of(text, kind="sentence", size=6) == ["One two. Three four.", "Five six. Seven."]
    assert texts_of(text, kind="sentence", size=6, overlap=1) == [
        "One two. Three four.",
        "Three four. Five six.",
        "Five six. Seven.",
    ]
    # A sentence that has no room beside the next one does not come again.
    long = "One two. Three four five six seven."
    assert texts_of(long, kind="sentence", size=6, overlap=1) == long.replace(". ", ".|").split("|")


def test_recursive_cuts_at_the_strongest_separator_that_suffices():
    text = "First paragraph here.\n\nShort.\n\nA line\nanother line. It goes on.\n\nEnd."
    assert texts_of(text, kind="recursive", size=7) == [
        "First paragraph here.\n\nShort.",
        "A line",
        "another line. It goes on.",
        "End.",
    ]
    assert texts_of("A long line. It goes on. End.", kind="recursive", size=6) == [
        "A long line.",
        "It goes on. End.",
    ]


def test_headers_say_where_a_chunk_stands():
    text = "# Cats\n\nThey purr.\n\n## Food\n\nFish.\n\n```\n# no heading\n```\n\n# Dogs\n\nBark."
    found = load_chunker({"kind": "recursive", "size": 3, "header": "headings"})
    headers = {each.text: each.header for each in found.chunks(Record("d", text))}
    assert headers["They purr."] == "Cats"
    assert headers["Fish."] == "Cats > Food"
    assert headers["Bark."] == "Dogs"
    chunk = next(each for each in found.chunks(Record("d", text)) if each.text == "Fish.")
    assert chunk.embedded == "Cats > Food\n\nFish."
    titled = load_chunker({"kind": "sentence", "size": 3, "header": "title"})
    assert [each.header for each in titled.chunks(Record("d", "Cats\nThey purr."))] == ["", "Cats"]
    own = Chunker(titled.split, lambda record, start: f"{record.id} at {start}")
    assert [each.header for each in own.chunks(Record("d", "Cats\nThey purr."))] == [
        "d at 0",
        "d at 5",
    ]
    assert set(HEADERS) == {"headings", "none", "title"}


def test_what_is_no_chunker_is_refused():
    with pytest.raises(SettingsError, match=r"chunker 'sentense' is not known.*sentence"):
        load_chunker({"kind": "sentense"})
    with pytest.raises(SettingsError, match="setting 'sise' is not known"):
        load_chunker({"kind": "fixed", "sise": 3})
    with pytest.raises(SettingsError, match="size is 0"):
        load_chunker({"kind": "sentence", "size": 0})
    with pytest.raises(SettingsError, match="overlap is 5, expected 0 to 4"):
        load_chunker({"kind": "fixed", "size": 5, "overlap": 5})
    with pytest.raises(SettingsError, match="header 'titel' is not known"):
        load_chunker({"kind": "fixed", "header": "titel"})
    with pytest.raises(DataError, match=r"document 'd'.*span \(0, 9\)"):
        list(Chunker(lambda text: [(0, 9)]).chunks(Record("d", "text")))
