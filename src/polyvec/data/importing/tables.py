"""Rows of the files that data sets are published in, under the names that tasks have."""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any

from polyvec.data.texts import kind_of, read_lines
from polyvec.data.training.files import table_rows
from polyvec.errors import DataError, known

Row = dict[str, Any]

# Other names of a task's fields.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "sentence1": ("sent1", "sentence_1", "sentence_A", "text1"),
    "sentence2": ("sent2", "sentence_2", "sentence_B", "text2"),
    "score": ("similarity_score", "relatedness_score", "similarity"),
    "text": ("sentence", "sentences"),
    "label": ("labels", "intent", "category"),
}
# Columns of STS-B's files, which have no header (readme.txt of Stsbenchmark.tar.gz).
STSB = ("genre", "subset", "year", "id", "score", "sentence1", "sentence2")
NUMBERS = ("score",)


def first_columns(path: Path) -> set[str]:
    """Columns of a file's first row; none if it has no rows, or is a text without columns."""
    if kind_of(path) == "txt" and not _has_tabs(path):
        return set()
    _, row = next(_rows(path, {}), ("", {}))
    return set(row)


def task_rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """(place, row) of a file, with its fields under the names that tasks have.

    columns: the column of a field, where its name does not tell; of a file without a header the
    number, from 1. All other columns stay. Lists of equal length are as many rows.
    """
    for place, row in _rows(path, columns):
        for one in _unrolled(_renamed(place, row, columns)):
            for name in NUMBERS:
                if isinstance(one.get(name), str | Decimal):
                    one[name] = _number(place, name, str(one[name]))
            yield place, one


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    if kind_of(path) in ("csv", "tsv", "txt") and _has_tabs(path):
        return _tab_separated(path, headless=any(each.isdecimal() for each in columns.values()))
    return table_rows(path)


def _has_tabs(path: Path) -> bool:
    return "\t" in next((line for _, line in read_lines(path) if line.strip()), "")


def _tab_separated(path: Path, *, headless: bool) -> Iterator[tuple[str, Row]]:
    """Quotation marks are ordinary characters, as in all data sets of this form."""
    names: list[str] | None = None
    stsb = False
    for number, line in read_lines(path):
        if not line.strip():
            continue
        cells = line.split("\t")
        if names is None:
            stsb = not headless and len(cells) >= len(STSB) and _is_number(cells[4])
            names = list(STSB) if stsb else cells
            if headless:
                names = [str(place) for place in range(1, len(cells) + 1)]
            elif not stsb:
                continue
        if stsb and len(cells) <= len(STSB) + 2:  # the sources of the sentences, in some lines
            cells = cells[: len(STSB)]
        if len(cells) != len(names):
            raise DataError(f"{path}:{number}: expected {len(names)} columns, got {len(cells)}")
        yield f"{path}:{number}", dict(zip(names, cells, strict=True))


def _renamed(place: str, row: Row, columns: Mapping[str, str]) -> Row:
    for column in columns.values():
        if column not in row:
            raise DataError(f"{place}: no column {column!r}.{known(column, map(str, row))}")
    found = {name: value for name, value in row.items() if name not in columns.values()}
    found |= {field: row[column] for field, column in columns.items()}
    for field, others in FIELDS.items():
        other = next((name for name in others if name in found), None)
        if field not in found and other is not None:
            found[field] = found.pop(other)
    return found


def _unrolled(row: Row) -> Iterator[Row]:
    """The row, or the rows in its lists: older data sets of MTEB keep a split in one row."""
    lists = {name: row[name] for name in FIELDS if isinstance(row.get(name), list)}
    if not lists or len({len(each) for each in lists.values()}) > 1:
        yield row
        return
    for values in zip(*lists.values(), strict=True):
        yield {**row, **dict(zip(lists, values, strict=True))}


def _number(place: str, name: str, cell: str) -> float:
    if not _is_number(cell) or not isfinite(float(cell)):
        raise DataError(f"{place}: {name} {cell!r} is not a finite number")
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def with_scores(rows: list[Row]) -> list[Row]:
    """Rows of pairs whose label is a fraction, such as GLUE's STS-B, have a score instead."""
    labels = [row.get("label") for row in rows]
    if any("score" in row or "sentence2" not in row for row in rows):
        return rows
    if not any(isinstance(each, float) and not each.is_integer() for each in labels):
        return rows
    return [{"score" if key == "label" else key: row[key] for key in row} for row in rows]
