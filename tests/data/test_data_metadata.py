"""Columns beside text and id become metadata."""

import json

import pytest

from polyvec.data.texts import read_texts
from polyvec.errors import DataError, SkippedColumnWarning

ROWS = [
    {"_id": "a", "title": "T", "text": "one", "year": 2020, "the lang": "en", "draft": False},
    {"_id": "b", "title": "", "text": "two", "year": None, "tags": ["x"], "score": 0.5, "meta": {}},
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def metadata(path, **options):
    return [dict(record.metadata) for record in read_texts(path, **options)]


def test_all_or_some_or_none(path):
    with pytest.warns(SkippedColumnWarning, match="column 'tags' is list and left out") as told:
        found = metadata(path, metadata=True)
    assert found == [{"year": 2020, "the_lang": "en", "draft": False}, {"score": 0.5}]
    assert len(told) == 1
    assert metadata(path, metadata=["year"]) == [{"year": 2020}, {}]
    assert metadata(path) == metadata(path, metadata=[]) == [{}, {}]
    with pytest.raises(DataError, match=r"no column 'yaer'\. Did you mean 'year'"):
        metadata(path, metadata=["yaer"])


def test_cells_are_numbers_where_the_whole_column_is(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,year,code,size,ok,mixed\na,2020,007,1,true,1\nb,,010,2.5,FALSE,x\n")
    assert metadata(path, metadata=True) == [
        {"year": 2020, "code": "007", "size": 1.0, "ok": True, "mixed": "1"},
        {"code": "010", "size": 2.5, "ok": False, "mixed": "x"},
    ]


def test_a_folder_keeps_metadata_under_its_ids(path):
    (found, _) = read_texts(path.parent, metadata=["year"])
    assert (found.id, found.metadata) == ("texts.jsonl:a", {"year": 2020})
