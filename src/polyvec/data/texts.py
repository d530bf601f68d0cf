"""Texts from everyone's files: .txt, .jsonl, .csv, .parquet, or standard input."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from polyvec.errors import DataError, MissingExtraError

TEXT_COLUMNS = ("text", "sentence", "content", "body")
ID_COLUMNS = ("_id", "id", "docid")


@dataclass(frozen=True, slots=True)
class Record:
    """A text and its id; ids are the file's own, or the running number from 0."""

    id: str
    text: str


def read_texts(
    source: str | Path | IO[str], *, column: str | None = None, id_column: str | None = None
) -> Iterator[Record]:
    """Records of a file, or of lines from an open stream, one at a time.

    A .txt file holds a text a line. In .jsonl, .csv and .parquet the text is in `column`
    (default: text, sentence, content or body; with a "title" beside it in .jsonl, title and
    text are joined by a space, as BEIR does). Raises DataError naming file and line.
    """
    if not isinstance(source, str | Path):
        return _lines(source)
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind == "txt":
        return _lines_of(path)
    if kind not in READERS:
        raise DataError(
            f"{path}: a file of kind {kind!r} is not known. Known: txt, {', '.join(READERS)}."
        )
    return _records(path, READERS[kind](path), column, id_column)


def open_text(path: Path) -> IO[str]:
    """A text file, unzipped if it ends in .gz; strict UTF-8, a byte-order mark is skipped."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open("rt", encoding="utf-8-sig", newline="")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank; DataError for what is no object."""
    for number, line in enumerate(_decoded(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error.msg} at column {error.colno})"
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{path}:{number}: {type(row).__name__}, not an object with named values"
            )
        yield number, row


def find_file(folder: Path, name: str) -> Path:
    """`folder/name` or its gzipped twin; DataError naming both if neither is there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder / name}: no such file, nor {name}.gz")


def _decoded(path: Path) -> Iterator[str]:
    """Lines ending at newlines only: JSON may hold other line separators inside strings."""
    try:
        with open_text(path) as file:
            for line in file:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path}: damaged gzip file ({error})") from None


def _lines(stream: Iterable[str]) -> Iterator[Record]:
    try:
        for number, line in enumerate(stream):
            yield Record(str(number), line.rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input: not UTF-8 ({error.reason} at byte {error.start})"
        ) from None


def _lines_of(path: Path) -> Iterator[Record]:
    return (Record(str(number), line) for number, line in enumerate(_decoded(path)))


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(line + "\n" for line in _decoded(path))
    try:
        for row in reader:
            if None in row:
                raise DataError(f"{path}:{reader.line_num}: more values than the header has names")
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"reading {path}") from None
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=8192):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


READERS = {"jsonl": read_jsonl, "csv": _csv, "parquet": _parquet}


def _records(
    path: Path, rows: Iterator[tuple[int, dict]], column: str | None, id_column: str | None
) -> Iterator[Record]:
    for place, (number, row) in enumerate(rows):
        text_key = _choose(path, number, row, column, TEXT_COLUMNS, "text")
        text = row[text_key]
        if not isinstance(text, str):
            raise DataError(f"{path}:{number}: {text_key!r} is {type(text).__name__}, not a string")
        if column is None and isinstance(row.get("title"), str):
            text = f"{row['title']} {text}".strip()
        id_key = id_column or next((key for key in ID_COLUMNS if row.get(key) is not None), None)
        if id_key is not None and id_key not in row:
            _choose(path, number, row, id_column, (), "id")
        yield Record(str(row[id_key]) if id_key else str(place), text)


def _choose(path, number, row, wanted, defaults, what) -> str:
    names = (wanted,) if wanted else defaults
    found = next((name for name in names if name in row), None)
    if found is None:
        known = ", ".join(map(str, row))
        raise DataError(f"{path}:{number}: no {what} column {' or '.join(names)}. Known: {known}.")
    return found


def as_stream(data: bytes | IO[bytes]) -> IO[str]:
    """Bytes as strict UTF-8 lines."""
    raw = io.BytesIO(data) if isinstance(data, bytes) else data
    return io.TextIOWrapper(raw, encoding="utf-8", newline="\n")
