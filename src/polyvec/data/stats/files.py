"""The data files of a folder, their splits, and their rows."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyvec.data.texts import READERS, kind_of, read_lines
from polyvec.errors import DataError

MAX_DEPTH = 6  # of nested values
# Names of the three splits in file names and in fields named "split".
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "devel", "development", "val", "valid", "validation"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file to read, and the name to show for it."""

    path: Path
    name: str

    @property
    def stem(self) -> str:
        """The file's name without its folder and suffixes."""
        return self.path.name.removesuffix(".gz").rpartition(".")[0]

    @property
    def kind(self) -> str:
        return kind_of(self.path)

    @property
    def is_qrels(self) -> bool:
        """Whether it holds judgements: a .tsv in a folder qrels/, or named qrels*.tsv."""
        place = (self.path.parent.name, re.split(r"[._-]", self.stem)[0])
        return self.kind == "tsv" and "qrels" in place


def data_files(source: str | Path) -> tuple[list[DataFile], list[str]]:
    """The readable files, and the names of all others; both sorted.

    A folder is searched to a depth of one folder, and of qrels/ within that.
    Raises DataError if no file can be read.
    """
    path = Path(source)
    if path.is_file():
        if kind_of(path) not in ROWS:
            raise DataError(f"{path}: unknown file type {kind_of(path)!r}.{_known()}")
        return [DataFile(path, path.name)], []
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    next(path.iterdir(), None)  # the OSError of a folder that may not be read; glob leaves it out
    found = [file for pattern in ("*", "*/*", "*/qrels/*") for file in path.glob(pattern)]
    names = {file.relative_to(path).as_posix(): file for file in found if file.is_file()}
    shown = {name: file for name, file in sorted(names.items()) if not _hidden(name)}
    read = [DataFile(file, name) for name, file in shown.items() if kind_of(file) in ROWS]
    if not read:
        raise DataError(f"{path}: contains no data files.{_known()}")
    return read, [name for name, file in shown.items() if kind_of(file) not in ROWS]


def _known() -> str:
    return f" Known: {', '.join(sorted(ROWS))}, each also .gz."


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def split_of(name: str) -> tuple[str | None, str]:
    """The split in a file's name, and the rest of the name, which files of one series share.

    >>> split_of("en-ext_train.jsonl.gz"), split_of("queries.test.jsonl"), split_of("all.jsonl")
    (('train', 'en ext'), ('test', 'queries'), (None, 'all'))
    """
    whole = name.removesuffix(".gz").rpartition(".")[0] or name
    parts = [part for part in re.split(r"[^0-9A-Za-z]+", whole) if part]
    for place, part in enumerate(parts):
        if part.lower() in SPLITS:
            # "test_dialogs" belongs to the series "dialogs"; "en_test_2016" belongs to "en".
            return SPLITS[part.lower()], " ".join(parts[:place] or parts[place + 1 :])
    return None, " ".join(parts)


# ---- rows ---------------------------------------------------------------------------------------


def read_rows(file: DataFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of any file except qrels. Raises DataError with file and line."""
    return ROWS[file.kind](file.path)


def _plain(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((number, {"text": line}) for number, line in read_lines(path))


ROWS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    **{kind: reader for kind, reader in READERS.items() if kind != "json"},  # often settings
    "txt": _plain,
}


def leaves(row: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The values of a row with their paths, including nested ones.

    >>> list(leaves({"id": 1, "facts": [{"text": "a b"}, {"text": "c d"}]}))
    [('id', 1), ('facts[].text', 'a b'), ('facts[].text', 'c d')]
    """
    if depth > MAX_DEPTH:
        return
    if isinstance(row, dict):
        for key, value in row.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(row, list):
        for value in row:
            yield from leaves(value, f"{name}[]", depth + 1)
    else:
        yield name, row
