"""Texts from .tsv, .json and folders, and blank lines of .csv."""

import gzip
import json

import pytest

from polyvec.data.texts import read_rows, read_texts
from polyvec.errors import DataError


def read(path, **options):
    return [(record.id, record.text) for record in read_texts(path, **options)]


def test_tsv(tmp_path):
    file = tmp_path / "x.tsv"
    file.write_text('id\ttext\n7\ta "cat"\n\n8\ttwo,dogs\n')
    assert read(file) == [("7", 'a "cat"'), ("8", "two,dogs")]
    file.write_text("1\ta cat\n2\tdogs\n")  # no header: columns by number
    assert read(file, column="2", id_column="1") == [("1", "a cat"), ("2", "dogs")]
    with pytest.raises(DataError, match=r"x.tsv:1: no text column .* Known: 1, 2"):
        read(file)
    file.write_text("id\ttext\n7\n")
    with pytest.raises(DataError, match=r"x.tsv:2: expected 2 columns, got 1"):
        read(file)


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_json(tmp_path, name):
    def write(value):
        text = value if isinstance(value, str) else json.dumps(value, indent=1)
        raw = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
        return tmp_path / name

    assert read(write(["a cat", "dogs"])) == [("0", "a cat"), ("1", "dogs")]
    assert read(write([{"_id": "n", "title": "A", "text": "b"}])) == [("n", "A b")]
    assert read(write([])) == read(write("")) == []
    rows = [{"a": 1, "text": "b"}]
    assert list(read_rows(write(rows))) == [(f"{tmp_path / name}:1", rows[0])]
    for value, words in (
        ({"text": "a"}, "expected an array of strings or objects, got dict"),
        ([5], "json.*:1: expected a string or an object, got int"),
        (["a", ["b"]], "json.*:2: expected a string or an object, got list"),
        ("[1", "not JSON"),
        ('[{"a": 1, "a": 2}]', "not JSON"),
        ("[" * 100_000, "not JSON"),
    ):
        with pytest.raises(DataError, match=words):
            read(write(value))


def test_a_folder(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("not read\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b" / "c.jsonl").write_text('{"_id": "n", "text": "three", "other": "3"}\n')
    assert read(tmp_path) == [("a.txt:0", "one"), ("a.txt:1", "two"), ("b/c.jsonl:n", "three")]
    assert read(tmp_path, column="other")[-1] == ("b/c.jsonl:n", "3")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "a document"}\n')
    assert read(tmp_path) == [("d", "a document")]  # a BEIR folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: contains no files of texts. Known: txt, jsonl"):
        read(tmp_path / "empty")


def test_blank_lines_of_a_csv_are_no_rows(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text('id,text\n1,a\n\n   \n \t\n2,"b\n\nc"\n\n')
    assert read(file) == [("1", "a"), ("2", "b\n\nc")]
    file.write_text("text,label\n  ,x\n")
    assert read(file) == [("0", "  ")]  # a row, whose text is blank
    file.write_text("id,text\n1\n")
    with pytest.raises(DataError, match=r"x.csv:2: 'text' is NoneType"):
        read(file)
