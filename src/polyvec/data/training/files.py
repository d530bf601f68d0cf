"""Rows with their places from the files and the hub's data sets that hold training data."""

import csv
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from polyvec.data.texts import BYTE_ORDER_MARK, check_is_file, read_lines, read_rows
from polyvec.data.training.rows import TrainingRow
from polyvec.errors import DataError

LARGE = 1 << 28  # bytes of a .jsonl file whose rows are not kept in memory
# (place, columns) of a row by its number.
Again = Callable[[int], tuple[str, Mapping[str, Any]]]
FILES = ("jsonl", "json", "csv", "tsv", "parquet", "txt")


def is_data_file(path: Path) -> bool:
    return path.is_file() and _kind(path) in FILES


def set_name(path: Path) -> str:
    """The name of a file without its endings; of train.jsonl that of its folder."""
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    return path.resolve().parent.name if stem == "train" else stem


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, columns) of each row of a file, or of the file with .gz behind its name.

    Raises DataError naming the place.
    """
    zipped = path.with_name(f"{path.name}.gz")
    path = zipped if not path.exists() and zipped.is_file() else path
    check_is_file(path)
    kind = _kind(path)
    if kind == "json":
        return _json_rows(path)
    if kind == "tsv":
        return _tsv_rows(path)
    if kind == "jsonl" and _has_lists(path):
        return _list_rows(path)
    if kind not in FILES:
        raise DataError(f"{path}: unknown file type {kind!r}. Known: {', '.join(FILES)}.")
    return read_rows(path, kind=kind)


def records_again(records: Any, name: str) -> Again | None:
    """Rows by number of a collection that is not in memory, such as a Hugging Face dataset."""
    if not hasattr(records, "__getitem__"):
        return None
    return lambda number: (f"{name} {number}", plain_values(records[number]))


def plain_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with lists and numbers in place of numpy's, which pandas and parquet files give."""
    return {
        key: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for key, value in row.items()
    }


def rows_again(path: Path) -> Again | None:
    """Rows of a large .jsonl file by number; None for others, whose rows are kept in memory."""
    is_large = path.is_file() and path.stat().st_size > LARGE
    if not is_large or path.suffix != ".jsonl" or _has_lists(path):
        return None
    return _Lines(path)


class _Lines:
    """Objects of the lines of a .jsonl file that are not blank, by number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts, self.lines = array("q"), array("q")
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self.starts.append(start)
                    self.lines.append(number)
                start += len(line)

    def __call__(self, number: int) -> tuple[str, Mapping[str, Any]]:
        with self.path.open("rb") as file:
            file.seek(self.starts[number])
            line = file.readline().removeprefix(BYTE_ORDER_MARK)
        return f"{self.path}:{self.lines[number]}", json.loads(line)


class RowsOnDisk(Sequence[TrainingRow]):
    """Rows that are read anew each time, so that memory holds only their numbers."""

    def __init__(self, numbers: Sequence[int], read: Callable[[int], TrainingRow]) -> None:
        self.numbers, self.read = numbers, read

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> TrainingRow: ...
    @overload
    def __getitem__(self, place: slice) -> list[TrainingRow]: ...
    def __getitem__(self, place: int | slice) -> TrainingRow | list[TrainingRow]:
        if isinstance(place, slice):
            return [self.read(number) for number in self.numbers[place]]
        return self.read(self.numbers[place])

    def chosen(self, places: Iterable[int]) -> "RowsOnDisk":
        return RowsOnDisk(array("q", (self.numbers[place] for place in places)), self.read)


def _kind(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[2].lower()


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A .json file is one list of objects (MEDI, DPR), or has an object a line."""
    text = "\n".join(line for _, line in read_lines(path))
    if not text.lstrip().startswith("["):
        yield from read_rows(path, kind="jsonl")
        return
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            raise DataError(f"{path} row {number}: {type(row).__name__}, not an object")
        yield f"{path} row {number}", row


def _has_lists(path: Path) -> bool:
    first = next((line for _, line in read_lines(path) if line.strip()), "")
    return first.lstrip().startswith("[")


def _list_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of a list of texts: anchor, positive and negatives (embedding-training-data)."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON ({error})") from None
        if not isinstance(found, list) or len(found) < 2:
            raise DataError(f"{path}:{number}: expected a list of 2 texts or more, as in line 1")
        names = ["anchor", "positive", *(f"negative_{i}" for i in range(1, len(found) - 1))]
        yield f"{path}:{number}", dict(zip(names, found, strict=True))


def _tsv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tab-separated columns below a header; quotation marks are ordinary characters."""
    lines = (line for _, line in read_lines(path))
    names: list[str] | None = None
    for number, cells in enumerate(
        csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), start=1
    ):
        if names is None:
            names = cells
            continue
        if cells and len(cells) != len(names):
            raise DataError(f"{path}:{number}: {len(cells)} columns, the header has {len(names)}")
        if cells:
            yield f"{path}:{number}", dict(zip(names, cells, strict=True))
