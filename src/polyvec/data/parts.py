"""Large files in parts that are read apart: where each begins, and its records.

Lines of uncompressed .txt and .jsonl files are found by their bytes, rows of Parquet by its row
groups; of other kinds what stands before a part is read and dropped.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from polyvec.data.texts import Record, kind_of, read_texts, records_of
from polyvec.errors import DataError, MissingExtraError


@dataclass(frozen=True, slots=True)
class Part:
    """Some records of a file: the first one's number, and how many.

    line: that of the first record, counted from 0, and `offset` the byte that it begins at, in
    files that are read by bytes.
    """

    start: int
    rows: int
    line: int = 0
    offset: int | None = None


def parts_of(path: Path, size: int) -> list[Part]:
    """A file in parts of `size` records; DataError for a file that cannot be read."""
    if _by_bytes(path):
        return _line_parts(path, size)
    total = _num_rows(path)
    return [Part(start, min(size, total - start)) for start in range(0, total, size)]


def read_part(
    path: Path, part: Part, *, column: str | None = None, id_column: str | None = None
) -> Iterator[Record]:
    """The records of a part, as `read_texts` reads them from the whole file.

    Raises DataError for a file that has become shorter.
    """
    count = 0
    for record in itertools.islice(_records(path, part, column, id_column), part.rows):
        count += 1
        yield record
    if count < part.rows:
        raise DataError(
            f"{path}: ends after {part.start + count} records, it had {part.start + part.rows}; "
            "it was changed since the job was planned: begin again in a new folder"
        )


def _by_bytes(path: Path) -> bool:
    return path.suffix != ".gz" and kind_of(path) in ("txt", "jsonl")


def _line_parts(path: Path, size: int) -> list[Part]:
    skips_blanks = kind_of(path) == "jsonl"
    found: list[Part] = []
    rows, first, offset = 0, (0, 0), 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not (skips_blanks and not line.strip()):
                if rows % size == 0:
                    first = (number, offset)
                rows += 1
                if rows % size == 0:
                    found.append(Part(rows - size, size, *first))
            offset += len(line)
    if rows % size:
        found.append(Part(rows - rows % size, rows % size, *first))
    return found


def _num_rows(path: Path) -> int:
    if kind_of(path) == "parquet" and path.suffix != ".gz":
        return int(_parquet(path).metadata.num_rows)
    return sum(1 for _ in read_texts(path))


def _records(path: Path, part: Part, column: str | None, id_column: str | None) -> Iterator[Record]:
    kind = kind_of(path)
    if part.offset is not None and kind == "txt":
        with path.open("rb") as file:
            for number, line in _lines(path, file, part):
                yield Record(str(number), line)
    elif part.offset is not None:
        with path.open("rb") as file:
            rows = _objects(path, file, part)
            yield from records_of(path, rows, column, id_column, first=part.start)
    elif kind == "parquet" and path.suffix != ".gz":
        yield from records_of(
            path, _parquet_rows(path, part.start), column, id_column, first=part.start
        )
    else:
        if kind == "txt":
            found = read_texts(path)
        else:
            found = read_texts(path, column=column, id_column=id_column)
        yield from itertools.islice(found, part.start, None)


def _lines(path: Path, file: IO[bytes], part: Part) -> Iterator[tuple[int, str]]:
    assert part.offset is not None
    file.seek(part.offset)
    for number, raw in enumerate(file, start=part.line):
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 0 else raw
        try:
            yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number + 1}: not UTF-8 ({error.reason} at byte {error.start})"
            ) from None


def _objects(path: Path, file: IO[bytes], part: Part) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path, file, part):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number + 1}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(
                f"{path}:{number + 1}: expected a JSON object, got {type(row).__name__}"
            )
        yield number + 1, row


def _parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"reading {path}") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path}: damaged Parquet file ({reason})") from None


def _parquet_rows(path: Path, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    file = _parquet(path)
    before, group = 0, 0
    while group < file.num_row_groups:
        rows = file.metadata.row_group(group).num_rows
        if before + rows > start:
            break
        before, group = before + rows, group + 1
    groups = list(range(group, file.num_row_groups))
    number = before
    for batch in file.iter_batches(batch_size=8192, row_groups=groups):
        for row in batch.to_pylist():
            number += 1
            if number > start:
                yield number, row
