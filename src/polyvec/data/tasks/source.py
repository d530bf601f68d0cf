"""Where a task's data comes from, and the rows of its files, whatever their columns are called.

A TaskSource says which files, which fields and which rows. One file of the literature often holds
many tasks (one for each language); then `{subset}` in the source is replaced by the subset that
is read, `{a}` and `{b}` by the two halves of one such as "eng:deu".
"""

import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from polyvec.data.texts import find_file, read_jsonl
from polyvec.errors import DataError, MissingExtraError, known

MTEB_SEED = 42


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Where the data of a task is, below a folder.

    `files` hold the rows (concatenated in order), `train` those that a classifier is trained on.
    Retrieval has `corpus`, `queries` and `qrels` instead, or pairs in `files` whose "query" finds
    its "document": there equal texts become one unless `merge` is false. Documents start with
    their titles unless `titles` is false; `only_judged` drops documents without a judgement.
    `fields` maps a field to its column ("a+b": two columns joined by a space), `where` keeps the
    rows with these values, `labels` keeps the rows with these labels and renames them. `draw`
    keeps a stratified sample of that many rows, the one that MTEB draws if `label_order` is the
    order of MTEB's label numbers.
    """

    kind: str
    files: tuple[str, ...] = ()
    _: KW_ONLY
    train: tuple[str, ...] = ()
    corpus: str = ""
    queries: str = ""
    qrels: str = ""
    split: str = "test"
    fields: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    merge: bool = True
    titles: bool = True
    only_judged: bool = False
    samples_per_label: int = 8
    protocol: str = "bootstrap"
    num_parts: int = 1
    max_texts: int | None = None
    fraction: float | None = None
    draw: int | None = None
    label_order: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a file: its values by the field's name in the task."""

    path: Path
    number: int
    values: Mapping[str, Any]
    fields: Mapping[str, str]

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"

    def value(self, field: str) -> Any:
        column = self.fields.get(field, field)
        found = [self.values.get(each) for each in column.split("+")]
        if any(value is None for value in found):
            if column in self.values:
                raise DataError(f"{self.where}: {column!r} is null")
            raise DataError(f"{self.where}: no {column!r}.{known(column, self.values)}")
        return " ".join(map(str, found)) if len(found) > 1 else found[0]

    def text(self, field: str) -> str:
        value = self.value(field)
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {field!r} is {value!r}, not a string")
        return self._encodable(value, field)

    def number_of(self, field: str) -> float:
        value = self.value(field)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # `not abs(...) <=` also rejects NaN, and integers that no float can hold.
        if not is_number or not abs(value) <= sys.float_info.max:
            raise DataError(f"{self.where}: {field!r} is {value!r}, not a finite number")
        return float(value)

    def strings(self, field: str) -> tuple[str, ...]:
        value = self.value(field)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise DataError(f"{self.where}: {field!r} is not a list of strings")
        return tuple(self._encodable(each, field) for each in value)

    def _encodable(self, text: str, field: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{self.where}: {field!r} has a lone surrogate at character {error.start}, which "
                "is not valid Unicode"
            ) from None
        return text


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """A source below a folder, at one of its subsets: what a reader reads from."""

    source: TaskSource
    root: Path
    name: str
    subset: str = ""

    @property
    def split(self) -> str:
        return self.source.split

    def path(self, file: str) -> Path:
        """A file of the source, gzipped or not; DataError if it is missing."""
        return find_file(self.root, filled(file, self.subset))

    def rows(self, files: Sequence[str] | None = None) -> list[Row]:
        """The selected rows, at least one, of the given files or else of the source's `files`."""
        source = self.source
        files = source.files if files is None else files
        fields = {name: filled(column, self.subset) for name, column in source.fields.items()}
        wanted = {column: filled(value, self.subset) for column, value in source.where.items()}
        rows = [
            row
            for file in files
            for row in _file_rows(self.path(file), fields)
            if all(str(row.values.get(column)) == value for column, value in wanted.items())
        ]
        if source.draw is not None and source.draw < len(rows):
            rows = _drawn(source, rows)
        # After the draw: MTEB draws first and then drops a label (XNLI's "neutral").
        if source.labels:
            column = fields.get("label", "label")
            rows = [row for row in rows if str(row.values.get(column)) in source.labels]
        if not rows:
            subset = f" of subset {self.subset!r}" if self.subset else ""
            raise DataError(f"{self.root}: {self.name} has no rows{subset} in {', '.join(files)}")
        return rows

    def label(self, row: Row) -> str:
        label = row.value("label")
        if not isinstance(label, str | int) or label == "":
            raise DataError(f"{row.where}: label {label!r} is not a string or a whole number")
        return self.source.labels.get(str(label), str(label))

    def sha256(self, files: Sequence[str] | None = None) -> str:
        """Hash of the files' names and bytes, and of the settings that select rows and fields."""
        source = self.source
        files = source.files if files is None else files
        paths = [self.path(file) for file in files]
        # Stored results name this hash: do not add to the list what does not change the data.
        hashed = [
            [[path.name, _file_hash(path)] for path in paths],
            self.subset,
            sorted(source.fields.items()),
            sorted(source.where.items()),
            sorted(source.labels.items()),
            source.draw,
        ]
        return hashlib.sha256(json.dumps(hashed).encode()).hexdigest()


def subsets_of(root: str | Path, file: str, column: str) -> tuple[str, ...]:
    """The distinct values of a column, in order of appearance."""
    rows = parsed(find_file(Path(root), file))
    return tuple(dict.fromkeys(str(values[column]) for _, values in rows if column in values))


def parsed(path: Path) -> tuple[tuple[int, dict[str, Any]], ...]:
    """A file's rows with their numbers."""
    return _parsed(path, _file_hash(path))


def filled(text: str, subset: str) -> str:
    """The text with its slots replaced by the subset."""
    first, _, second = subset.partition(":")
    for slot, value in (("{subset}", subset), ("{a}", first), ("{b}", second)):
        text = text.replace(slot, value)
    return text


def _drawn(source: TaskSource, rows: list[Row]) -> list[Row]:
    """A stratified sample of the rows: the one that MTEB draws from larger sets, with its seed."""
    import numpy as np

    try:
        from datasets.utils.stratify import stratified_shuffle_split_generate_indices as draws
    except ImportError:
        raise MissingExtraError("datasets", "mteb", "MTEB's draw from a larger set") from None
    names = source.label_order or sorted({str(row.value("label")) for row in rows})
    labels = np.array([names.index(str(row.value("label"))) for row in rows])
    num_test = source.draw or len(rows)
    generator = np.random.default_rng(MTEB_SEED)
    _, chosen = next(draws(labels, len(rows) - num_test, num_test, rng=generator))
    return [rows[place] for place in chosen]


def _file_rows(path: Path, fields: Mapping[str, str]) -> Iterator[Row]:
    for number, values in parsed(path):
        yield Row(path, number, values, fields)


# One file may hold the rows of a hundred subsets: keep the last few, by content.
@functools.lru_cache(maxsize=4)
def _parsed(path: Path, sha256: str) -> tuple[tuple[int, dict[str, Any]], ...]:
    return tuple(read_jsonl(path))


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
