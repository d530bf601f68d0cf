"""Texts from everyone's files: .txt, .jsonl, .json, .csv, .tsv, .parquet, or standard input."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from polyvec.data.metadata import Columns, typed_cells
from polyvec.data.strict_json import strict_json
from polyvec.errors import DataError, InputError, MissingExtraError, known
from polyvec.storage.files import as_path, files_below

TEXT_COLUMNS = ("text", "sentence", "content", "body")
ID_COLUMNS = ("_id", "id", "docid")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COLUMN_NAME = re.compile(r"[^\W\d][\w.-]*")  # of a header's cell, not a text
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
Source = Path | IO[bytes]
DAMAGED_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)


@dataclass(frozen=True, slots=True)
class Record:
    """A text and its id: the file's id, or else the number of the record from 0.

    metadata: what else is known of it, by which a search can be filtered.
    """

    id: str
    text: str
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict, hash=False)


def read_texts(
    source: str | Path | IO[bytes],
    *,
    column: str | None = None,
    id_column: str | None = None,
    metadata: bool | Sequence[str] = False,
) -> Iterator[Record]:
    """Records of a file, or of the lines of an open binary stream, one at a time.

    A .txt file has one text per line; an empty line is an empty text. In .jsonl, .csv and
    .parquet, .tsv and .json (an array) the text is in `column` (default: text, sentence, content
    or body; a "title" is put before it with a space, as BEIR does). Each may be gzipped (.gz).
    Of a folder all such files are read, in the order of their names, and an id is "FILE:ID"; of a
    BEIR folder its corpus alone. `metadata`: records have the other columns, or those named here,
    as metadata (`data.metadata`); of .csv and .tsv all records are then read at once.
    Raises DataError naming file and line.
    """
    if not isinstance(source, str | Path):
        _check_stream(source)
        _refuse_columns(_name(source), column, id_column)
        return _plain(read_lines(source))
    path = as_path(source, "source")
    if path.is_dir():
        return _folder(path, column, id_column, metadata)
    check_is_file(path)
    kind = kind_of(path)
    if kind == "txt":
        _refuse_columns(str(path), column, id_column)
        return _plain(read_lines(path))
    if kind not in READERS:
        raise DataError(f"{path}: {_unknown(kind)}. Known: txt, {', '.join(READERS)}.")
    wanted = None if isinstance(metadata, bool) else metadata
    columns = Columns(wanted, kind in ("csv", "tsv")) if metadata else None
    found = records_of(path, READERS[kind](path), column, id_column, columns=columns)
    return _typed(found) if columns and columns.cells else found


def _typed(records: Iterator[Record]) -> Iterator[Record]:
    items = list(records)
    rows = typed_cells([dict(item.metadata) for item in items])
    return (replace(item, metadata=row) for item, row in zip(items, rows, strict=True))


def _folder(
    path: Path, column: str | None, id_column: str | None, metadata: bool | Sequence[str]
) -> Iterator[Record]:
    options: dict[str, Any] = {"column": column, "id_column": id_column, "metadata": metadata}
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if (path / name).is_file():
            return read_texts(path / name, **options)
    names = sorted(
        each.relative_to(path).as_posix()
        for each in files_below(path)
        if each.is_file() and kind_of(each) in ("txt", *READERS)
    )
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not shown:
        raise DataError(f"{path}: contains no files of texts. Known: txt, {', '.join(READERS)}.")
    return (
        replace(record, id=f"{name}:{record.id}")
        for name in shown
        for record in read_texts(path / name, **({} if kind_of(path / name) == "txt" else options))
    )


def kind_of(path: Path) -> str:
    """A file's type by its suffix, in lower case, before .gz."""
    _, dot, kind = path.name.removesuffix(".gz").rpartition(".")
    return kind.lower() if dot else ""


def read_rows(
    source: str | Path | IO[bytes], *, kind: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row with all its columns) of a file or an open binary stream, one at a time.

    The kind is txt, jsonl, json, csv, tsv or parquet (a stream: all but that); default: by the
    file's suffix, txt for a stream. A line of txt is a row of one column, "text". The place,
    "FILE:LINE", is for errors. Raises DataError naming it, also for JSON that has a key twice or
    NaN.
    """
    if isinstance(source, str | Path):
        source = as_path(source, "source")
        check_is_file(source)
        kind = kind_of(source) if kind is None else kind
    else:
        _check_stream(source)
        kind = kind or "txt"
    kinds = ("txt", *(each for each in READERS if isinstance(source, Path) or each != "parquet"))
    if kind not in kinds:
        raise DataError(f"{_name(source)}: {_unknown(kind)}. Known: {', '.join(kinds)}.")
    if kind == "txt":
        return ((f"{_name(source)}:{i}", {"text": line}) for i, line in read_lines(source))
    found = read_jsonl(source, strict=True) if kind == "jsonl" else READERS[kind](source)
    return ((f"{_name(source)}:{i}", row) for i, row in found)


def _unknown(kind: str) -> str:
    return f"unknown file type {kind!r}" if kind else "the name has no suffix that says its type"


def _check_stream(source: object) -> None:
    if not hasattr(source, "read"):
        raise InputError(
            f"source is {type(source).__name__}, expected a path or an open binary stream"
        )


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of .jsonl; DataError for a column of bytes, for NaN and infinity."""
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=as_json)
        return line.encode() + b"\n"
    except UnicodeEncodeError:  # lone surrogates, which JSON can only write escaped
        return json.dumps(row, default=as_json).encode() + b"\n"
    except DataError:  # a ValueError, too
        raise
    except ValueError:
        raise DataError(
            "NaN or infinity cannot be written as JSON; replace it by null or leave the column out"
        ) from None


def as_json(value: object) -> str:
    """What `json.dumps(row, default=as_json)` writes for dates (ISO 8601), decimals and others.

    Raises DataError for bytes.
    """
    if isinstance(value, bytes):
        raise DataError("a column of bytes cannot be written as JSON; leave it out")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def check_is_file(path: Path) -> None:
    if path.is_dir() or not path.exists():
        raise DataError(
            f"{path}: {'is a directory, not a file' if path.is_dir() else 'no such file'}"
        )


def read_lines(path: Source) -> Iterator[tuple[int, str]]:
    """(line number, line) of a UTF-8 file, unzipped if it ends in .gz, or of a stream.

    Only a newline ends a line: texts and JSON strings may hold other separators.
    """
    if not isinstance(path, Path):
        yield from _decoded(path, _name(path))
        return
    try:
        with _open(path) as file:
            yield from _decoded(file, str(path))
    except DAMAGED_GZIP as error:
        raise DataError(f"{path}: damaged gzip file ({error})") from None


def read_jsonl(path: Source, *, strict: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank; DataError if one is not an object.

    strict: a key that is given twice, NaN and infinity are errors, too.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        row = _parsed(path, number, line, strict_json if strict else json.loads)
        if not isinstance(row, dict):
            raise DataError(
                f"{_name(path)}:{number}: expected a JSON object, got {type(row).__name__}"
            )
        yield number, row


def find_file(folder: Path, name: str) -> Path:
    """`folder/name` or `folder/name.gz`; DataError naming both if neither exists."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder / name}: neither this file nor {name}.gz exists")


def _name(source: Source) -> str:
    return str(source) if isinstance(source, Path) else "standard input"


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _decoded(file: Iterable[bytes], where: str) -> Iterator[tuple[int, str]]:
    """Decode line by line, so that an error can name the line; skip a byte-order mark."""
    try:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
            if 4 * raw.count(0) > len(raw) or (number == 1 and raw[:2] in UTF_16_MARKS):
                raise DataError(
                    f"{where}:{number}: not UTF-8 but UTF-16, or no text; convert it: "
                    "iconv -f UTF-16 -t UTF-8"
                )
            try:
                text = line.removesuffix(b"\n").removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where}:{number}: not UTF-8 ({error.reason} at byte {error.start}); convert "
                    "it: iconv -f LATIN1 -t UTF-8, or from what it is"
                ) from None
            yield number, text
    except OSError as error:
        if error.errno and error.filename is None:  # a failed read() does not name the file
            error.filename = where
        raise


def _plain(lines: Iterable[tuple[int, str]]) -> Iterator[Record]:
    return (Record(str(number - 1), line) for number, line in lines)


def _refuse_columns(where: str, column: str | None, id_column: str | None) -> None:
    if column is not None or id_column is not None:
        raise DataError(
            f"{where}: plain text has no column {column or id_column!r}; "
            f"only {', '.join(READERS)} have columns"
        )


def _parsed(path: Source, number: int, line: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # thousands of digits, or of nested brackets
        reason = str(error)
    raise DataError(f"{_name(path)}:{number}: not JSON ({reason})")


def _csv(path: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long text
    reader = csv.DictReader((f"{line}\n" for _, line in read_lines(path)), strict=True)
    try:
        names = reader.fieldnames or ()
        if len(set(names)) != len(names):
            raise DataError(f"{_name(path)}:1: duplicate column: {', '.join(names)}")
        for row in reader:
            if _is_blank(row):
                continue
            if None in row:
                raise DataError(
                    f"{_name(path)}:{reader.line_num}: more values than the header has columns"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{_name(path)}:{reader.reader.line_num}: not CSV ({error})") from None


def _is_blank(row: dict[Any, Any]) -> bool:
    """A line of spaces alone among rows of several columns; csv skips empty lines itself."""
    first, *others = row.values()
    return bool(others) and not any(others) and isinstance(first, str) and not first.strip()


def _tsv(path: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of cells; without a header the columns are named "1", "2", ..."""
    names: list[str] | None = None
    for number, line in read_lines(path):
        if not line:
            continue
        cells = line.split("\t")
        if names is None:
            is_header = all(COLUMN_NAME.fullmatch(cell) for cell in cells)
            names = cells if is_header else [str(i) for i in range(1, len(cells) + 1)]
            if len(set(names)) != len(names):
                raise DataError(f"{_name(path)}:{number}: duplicate column: {', '.join(names)}")
            if is_header:
                continue
        if len(cells) != len(names):
            raise DataError(
                f"{_name(path)}:{number}: expected {len(names)} columns, got {len(cells)}"
            )
        yield number, dict(zip(names, cells, strict=True))


def _json(path: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place from 1, object) of a JSON array; a string is a row of one column, "text"."""
    text = "\n".join(line for _, line in read_lines(path))
    if not text.strip():
        return
    rows = _parsed(path, 1, text, strict_json)
    if not isinstance(rows, list):
        raise DataError(
            f"{_name(path)}: expected an array of strings or objects, got {type(rows).__name__}"
        )
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise DataError(
                f"{_name(path)}:{number}: expected a string or an object, got {type(row).__name__}"
            )
        yield number, row


def _parquet(path: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    assert isinstance(path, Path)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"reading {path}") from None
    number = 0
    with _open(path) as file:
        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=8192):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        # pyarrow raises OSError for a damaged page.
        except (pyarrow.ArrowException, OSError, *DAMAGED_GZIP) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(f"{path}: damaged Parquet file ({reason})") from None


READERS = {"jsonl": read_jsonl, "json": _json, "csv": _csv, "tsv": _tsv, "parquet": _parquet}


def records_of(
    path: Path,
    rows: Iterator[tuple[int, dict[str, Any]]],
    column: str | None,
    id_column: str | None,
    *,
    first: int = 0,
    columns: Columns | None = None,
) -> Iterator[Record]:
    """Records of rows (line, columns) of a file, of which `first` stand before these.

    `columns` makes their metadata.
    """
    for place, (number, row) in enumerate(rows, start=first):
        where = f"{path}:{number}"
        chosen = _choose(where, row, column, TEXT_COLUMNS, "text")
        text, used = _value(where, row, chosen, str), {chosen}
        if column is None and isinstance(row.get("title"), str):
            text = f"{_value(where, row, 'title', str)} {text}".strip()
            used.add("title")
        key = _id_column(where, row, id_column)
        name = str(place) if key is None else str(_value(where, row, key, (str, int, float)))
        but = used if key is None else {*used, key}
        yield Record(name, text, {} if columns is None else columns.of(row, but, where))
    if columns is not None:
        columns.check(str(path))


def _id_column(where: str, row: dict[str, Any], id_column: str | None) -> str | None:
    if id_column:
        return _choose(where, row, id_column, (), "id")
    return next((name for name in ID_COLUMNS if row.get(name) is not None), None)


def _choose(
    where: str, row: dict[str, Any], wanted: str | None, defaults: tuple[str, ...], what: str
) -> str:
    names = (wanted,) if wanted else defaults
    found = next((name for name in names if name in row), None)
    if found is None:
        hint = "" if wanted else "; name it with column=."
        raise DataError(
            f"{where}: no {what} column {' or '.join(names)}{hint or '.'}"
            + known(names[0], map(str, row))
        )
    return found


def _value(where: str, row: dict[str, Any], key: str, kinds: type | tuple[type, ...]) -> Any:
    """The row's value, checked to be of these types and to be encodable as UTF-8."""
    value = row[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = "a string" if kinds is str else "a string or a number"
        raise DataError(f"{where}: {key!r} is {type(value).__name__}, not {wanted}")
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {key!r} has a lone surrogate at character {error.start}, which is not valid "
            "Unicode"
        ) from None
    return value
