"""Parts of files hold, one after another, what the whole file holds."""

import gzip
import json

import pytest

from polyvec.data.parts import Part, parts_of, read_part
from polyvec.data.texts import read_texts
from polyvec.errors import DataError

ODD = ["plain", "", "日本 text", 'tab\tand "quotes"', "line\u2028separator", "\u00a0", "x" * 5000]
TEXTS = [f"{ODD[n % len(ODD)]}{'' if n % 7 == 1 else n}" for n in range(53)]


def write(path, kind):
    if kind == "txt":
        path.write_bytes(b"\xef\xbb\xbf" + "\n".join(TEXTS).encode())
    elif kind == "txt, ended":
        path.write_bytes("".join(f"{text}\r\n" for text in TEXTS).encode())
    elif kind in ("jsonl", "jsonl.gz"):
        lines = [json.dumps({"text": text, "title": "T"}) for text in TEXTS]
        lines = [line + ("\n \n" if n % 5 == 0 else "\n") for n, line in enumerate(lines)]
        opened = gzip.open if kind.endswith("gz") else open
        with opened(path, "wt", encoding="utf-8", newline="\n") as file:
            file.write("\n" + "".join(lines))
    elif kind == "csv":
        import csv

        with path.open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file)
            out.writerow(["id", "text"])
            out.writerows([f"i{n}", text] for n, text in enumerate(TEXTS))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        table = pyarrow.table({"text": TEXTS, "_id": [f"p{n}" for n in range(len(TEXTS))]})
        parquet.write_table(table, path, row_group_size=10)


@pytest.mark.parametrize("kind", ["txt", "txt, ended", "jsonl", "jsonl.gz", "csv", "parquet"])
@pytest.mark.parametrize("size", [1, 7, 10, 53, 1000])
def test_parts_are_the_whole(tmp_path, kind, size):
    path = tmp_path / f"texts.{kind.partition(',')[0]}"
    write(path, kind)
    whole = list(read_texts(path))
    parts = parts_of(path, size)
    assert [each.start for each in parts] == list(range(0, len(whole), size))
    assert [record for part in parts for record in read_part(path, part)] == whole
    last = parts[-1]
    assert list(read_part(path, last)) == whole[last.start :]  # without those before


def test_an_empty_file_has_no_parts(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    assert parts_of(tmp_path / "a.txt", 5) == parts_of(tmp_path / "a.jsonl", 5) == []


def test_errors_name_the_line_of_the_whole_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"text": 3}\n{\n')
    parts = parts_of(path, 2)
    with pytest.raises(DataError, match=r"a\.jsonl:3: 'text' is int"):
        list(read_part(path, parts[1]))
    path.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="ends after 1 records"):
        list(read_part(path, Part(0, 2, 0, 0)))
