"""Readers: every format gives the same records, and every flaw is named by file and line."""

import gzip
import io
import json

import pytest

from polyvec.data.texts import Record, find_file, read_rows, read_texts
from polyvec.errors import DataError

TEXTS = ["a cat", "", "deux\u2028lignes", "漢字 🙂", 'quote " comma , brace {x}', "x" * 200_000]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_csv(texts) -> bytes:
    cells = ['"' + text.replace('"', '""') + '"' for text in texts]
    return ("text\n" + "\n".join(cells) + "\n").encode()


def write_parquet(texts) -> bytes:
    pa = pytest.importorskip("pyarrow")
    sink = io.BytesIO()
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"text": texts}), sink)
    return sink.getvalue()


AS_BYTES = {
    "txt": lambda texts: "".join(f"{text}\n" for text in texts).encode(),
    "jsonl": lambda texts: jsonl({"text": text} for text in texts),
    "csv": write_csv,
    "parquet": write_parquet,
}


def read(path, **columns) -> list[tuple[str, str]]:
    return [(record.id, record.text) for record in read_texts(path, **columns)]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", AS_BYTES)
def test_every_format_gives_the_same_records(tmp_path, kind, zipped):
    data = AS_BYTES[kind](TEXTS)
    path = tmp_path / (f"x.{kind}.gz" if zipped else f"x.{kind}")
    path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    assert read(path) == [(str(i), text) for i, text in enumerate(TEXTS)]


def test_standard_input_reads_as_a_text_file_does(tmp_path):
    data = b"\xef\xbb\xbfa cat\r\n\nlone \r carriage return\n\xe2\x80\xa8\nno newline at the end"
    (tmp_path / "x.txt").write_bytes(data)
    expected = ["a cat", "", "lone \r carriage return", "\u2028", "no newline at the end"]
    assert [text for _, text in read(tmp_path / "x.txt")] == expected
    assert [text for _, text in read(io.BytesIO(data))] == expected


def test_an_empty_line_keeps_its_number(tmp_path):
    (tmp_path / "x.txt").write_text("a\n\nb\n")
    assert read(tmp_path / "x.txt") == [("0", "a"), ("1", ""), ("2", "b")]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_nothing_gives_no_records(tmp_path, kind):
    (tmp_path / f"x.{kind}").write_bytes(b"")
    assert read(tmp_path / f"x.{kind}") == []


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_a_byte_order_mark_and_windows_line_ends_are_not_text(tmp_path, kind):
    data = b"\xef\xbb\xbf" + AS_BYTES[kind](["a", "b"]).replace(b"\n", b"\r\n")
    (tmp_path / f"x.{kind}").write_bytes(data)
    assert read(tmp_path / f"x.{kind}") == [("0", "a"), ("1", "b")]


def test_a_csv_value_may_hold_lines(tmp_path):
    (tmp_path / "x.csv").write_text('id,text\n7,"one\n\ntwo"\n8,three\n')
    assert read(tmp_path / "x.csv") == [("7", "one\n\ntwo"), ("8", "three")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a", "_id": "x", "id": "y"}, ("x", "a")),
        ({"text": "a", "id": 7}, ("7", "a")),
        ({"text": "a", "docid": "d"}, ("d", "a")),
        ({"text": "a", "_id": None, "id": "y"}, ("y", "a")),
        ({"sentence": "a"}, ("0", "a")),
        ({"content": "a"}, ("0", "a")),
        ({"body": "b", "text": "a"}, ("0", "a")),
        ({"text": "body", "title": "Title"}, ("0", "Title body")),
        ({"text": "body", "title": ""}, ("0", "body")),
        ({"text": "body", "title": None}, ("0", "body")),
        ({"text": "", "title": "Title"}, ("0", "Title")),
        ({"text": " kept "}, ("0", " kept ")),
    ],
)
def test_ids_and_titles(tmp_path, row, expected):
    (tmp_path / "x.jsonl").write_bytes(jsonl([row]))
    assert read(tmp_path / "x.jsonl") == [expected]


def test_named_columns_are_taken_alone(tmp_path):
    row = {"text": "a", "title": "T", "other": "b", "key": "k"}
    (tmp_path / "x.jsonl").write_bytes(jsonl([row]))
    found = read(tmp_path / "x.jsonl", column="other", id_column="key")
    assert found == [("k", "b")]


def test_ids_are_row_numbers_even_where_lines_are_blank(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n\n  \n{"text": "b"}\n')
    assert read(tmp_path / "x.jsonl") == [("0", "a"), ("1", "b")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "x.jsonl:2: not JSON (Expecting value at"),
        ("x.jsonl", b'{"text": "a"}\n\n[1]\n', "x.jsonl:3: expected a JSON object, got list"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl:1: not JSON (maximum recursion depth"),
        ("x.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "x.jsonl:1: not JSON (Exceeds the limit"),
        ("x.jsonl", b'{"txt": "a"}\n', "x.jsonl:1: no text column text or sentence or content"),
        ("x.jsonl", b'{"txt": "a"}\n', "Did you mean 'txt'? Known: txt."),
        ("x.jsonl", b'{"text": 5}\n', "x.jsonl:1: 'text' is int, not a string"),
        ("x.jsonl", b'{"text": null}\n', "x.jsonl:1: 'text' is NoneType, not a string"),
        ("x.jsonl", b'{"text": "a", "id": [1]}\n', "x.jsonl:1: 'id' is list, not a string or a"),
        ("x.jsonl", b'{"text": "a", "id": true}\n', "x.jsonl:1: 'id' is bool, not a string or a"),
        ("x.jsonl", b'{"text": "a\\ud800"}', "x.jsonl:1: 'text' has a lone surrogate at char"),
        ("x.jsonl", b'{"text": "a", "id": "\\ud800"}', "x.jsonl:1: 'id' has a lone surrogate"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "x.jsonl:2: not UTF-8 (invalid start"),
        ("x.txt", b"a\nb\n\xc3(\n", "x.txt:3: not UTF-8 (invalid continuation byte at byte 0)"),
        ("x.csv", b"text\na\n\xff\n", "x.csv:3: not UTF-8"),
        ("x.csv", b"text,id\na,1,2\n", "x.csv:2: more values than the header has columns"),
        ("x.csv", b"id,text\n1\n", "x.csv:2: 'text' is NoneType, not a string"),
        ("x.csv", b'text\n"a\n', "x.csv:2: not CSV (unexpected end of data)"),
        ("x.csv", b"text,text\na,b\n", "x.csv:1: duplicate column: text, text"),
        (
            "x.csv",
            b"name\na\n",
            "x.csv:2: no text column text or sentence or content or body; name it with column=.",
        ),
        ("x.parquet", b"", "x.parquet: damaged Parquet file"),
        ("x.parquet", b"PAR1 no, it is not", "x.parquet: damaged Parquet file"),
        ("x.txt.gz", b"not gzip", "x.txt.gz: damaged gzip file (Not a gzipped file"),
        ("x.txt.gz", gzip.compress(b"abc\n" * 99, mtime=0)[:-9], "x.txt.gz: damaged gzip file"),
        (
            "x.pdf",
            b"",
            "x.pdf: unknown file type 'pdf'. Known: txt, jsonl, json, csv, tsv, parquet",
        ),
        ("texts", b"", "texts: the name has no suffix that says its type"),
    ],
)
def test_a_flaw_is_named_by_file_and_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    assert message in str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("place", [10, -6])
def test_damage_inside_compressed_data_is_named(tmp_path, place):
    """In the first block's header, which zlib refuses, and in the checksum, which gzip does."""
    data = bytearray(gzip.compress(b"".join(b"%d\n" % i for i in range(9999))))
    data[place] ^= 0xFF
    (tmp_path / "x.txt.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"x.txt.gz: damaged gzip file"):
        read(tmp_path / "x.txt.gz")


def test_a_cut_parquet_file_is_named(tmp_path):
    data = write_parquet([f"text {i}" for i in range(1000)])
    for cut in (4, len(data) // 2, len(data) - 1):
        (tmp_path / "x.parquet").write_bytes(data[:cut])
        with pytest.raises(DataError, match=r"x.parquet: damaged Parquet file"):
            read(tmp_path / "x.parquet")
    damaged = bytearray(data)
    damaged[4:400] = b"\xff" * 396
    (tmp_path / "x.parquet").write_bytes(damaged)
    with pytest.raises(DataError, match=r"x.parquet: damaged Parquet file"):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"column": "txet"}, "no text column txet. Did you mean 'text'? Known: id, text."),
        ({"id_column": "key"}, "no id column key. Known: id, text."),
        ({"id_column": "id"}, "'id' is NoneType, not a string or a number"),
    ],
)
def test_a_wrong_column_is_named_with_those_there_are(tmp_path, columns, message):
    (tmp_path / "x.jsonl").write_bytes(jsonl([{"text": "a", "id": None}]))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "x.jsonl", **columns)
    assert str(caught.value) == f"{tmp_path}/x.jsonl:1: {message}"


def test_a_column_of_plain_lines_is_an_error(tmp_path):
    (tmp_path / "x.txt").write_text("a\n")
    for source in (tmp_path / "x.txt", io.BytesIO(b"a\n")):
        with pytest.raises(DataError, match="plain text has no column 'text'"):
            read_texts(source, column="text")


def test_a_missing_file_and_a_folder_have_messages_of_their_own(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt: no such file"):
        read_texts(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="contains no files of texts"):
        read_texts(tmp_path)


def test_a_file_is_read_no_further_than_asked(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\nnot JSON\n')
    assert next(read_texts(tmp_path / "x.jsonl")) == Record("0", "a")


def test_find_file_prefers_the_plain_file_and_takes_the_zipped(tmp_path):
    (tmp_path / "a.tsv.gz").touch()
    assert find_file(tmp_path, "a.tsv").name == "a.tsv.gz"
    (tmp_path / "a.tsv").touch()
    assert find_file(tmp_path, "a.tsv").name == "a.tsv"
    with pytest.raises(DataError, match=r"b.tsv: neither this file nor b.tsv.gz"):
        find_file(tmp_path, "b.tsv")


# ---- rows ---------------------------------------------------------------------------------------


def test_rows_keep_all_columns_and_say_where_they_are(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1, "b": [2]}\n\n{"c": null}\n')
    assert list(read_rows(path)) == [
        (f"{path}:1", {"a": 1, "b": [2]}),
        (f"{path}:3", {"c": None}),
    ]
    (tmp_path / "x.txt").write_text("a\n\nb")
    assert [row for _, row in read_rows(tmp_path / "x.txt")] == [
        {"text": "a"},
        {"text": ""},
        {"text": "b"},
    ]
    assert [row for _, row in read_rows(path, kind="txt")][1:] == [
        {"text": ""},
        {"text": '{"c": null}'},
    ]


def test_rows_of_a_stream():
    stream = io.BytesIO(b'\xef\xbb\xbfa,b\r\n1,"x\ny"\r\n')
    assert list(read_rows(stream, kind="csv")) == [("standard input:3", {"a": "1", "b": "x\ny"})]
    assert list(read_rows(io.BytesIO(b"a\n"))) == [("standard input:1", {"text": "a"})]
    with pytest.raises(DataError, match="standard input:2: not JSON"):
        list(read_rows(io.BytesIO(b"{}\nx\n"), kind="jsonl"))
    with pytest.raises(
        DataError, match=r"unknown file type 'parquet'. Known: txt, jsonl, json, csv, tsv\."
    ):
        read_rows(io.BytesIO(b""), kind="parquet")
