"""The rows of a task's files, whatever their columns are called.

A Layout says where the parts of a task stand: which files, which fields, which rows. One file of
the literature often holds many tasks (a language each); then `{subset}` stands in the layout for
the subset that is read, `{a}` and `{b}` for the two halves of one such as "eng:deu".
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyvec.data.tasks import beir as sets
from polyvec.data.texts import find_file, read_jsonl
from polyvec.errors import DataError, MissingExtraError

MTEB_SEED = 42


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a task's data stands below a folder.

    `files` hold the rows (joined, in order), `train` those a classifier learns on; retrieval has
    `corpus`, `queries` and `qrels` instead, or pairs in `files` whose "query" finds its "document".
    Equal texts of pairs are one unless `merge` is false; documents begin with their titles unless
    `titles` is. `only_judged` leaves out documents that
    no query has a judgement of, `rerank_judged` ranks only the judged ones of each query.
    `fields` says what a part is called there ("a+b": joined by a space), `where` which rows
    count, `labels` which labels do and what they become; `draw` that only as many rows are drawn,
    each label in its share, as MTEB does, whose numbers of labels `label_order` has.
    """

    kind: str
    files: tuple[str, ...] = ()
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
    rerank_judged: bool = False
    samples_per_label: int = 8
    protocol: str = "bootstrap"
    num_parts: int = 1
    max_texts: int | None = None
    fraction: float | None = None
    draw: int | None = None
    label_order: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a file: its parts by their name in the task."""

    path: Path
    number: int
    values: Mapping[str, Any]
    fields: Mapping[str, str]

    def part(self, name: str) -> Any:
        column = self.fields.get(name, name)
        found = [self.values.get(each) for each in column.split("+")]
        if any(value is None for value in found):
            raise DataError(
                f"{self.path}:{self.number}: no {column!r}. Known: {sorted(self.values)}"
            )
        return " ".join(map(str, found)) if len(found) > 1 else found[0]

    def text(self, name: str) -> str:
        value = self.part(name)
        if not isinstance(value, str):
            raise DataError(f"{self.path}:{self.number}: {name!r} is {value!r}, not a string")
        return value

    def number_of(self, name: str) -> float:
        return sets.number_of(self.path, self.number, {name: self.part(name)}, name)

    def strings(self, name: str) -> tuple[str, ...]:
        value = self.part(name)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise DataError(f"{self.path}:{self.number}: {name!r} is not a list of strings")
        return tuple(value)


def subsets_of(root: str | Path, file: str, column: str) -> tuple[str, ...]:
    """The values of a column, in the order in which they come."""
    rows = parsed(find_file(Path(root), file))
    return tuple(dict.fromkeys(str(values[column]) for _, values in rows if column in values))


def rows_of(
    layout: Layout, root: Path, files: tuple[str, ...], subset: str, name: str
) -> list[Row]:
    fields = {part: filled(column, subset) for part, column in layout.fields.items()}
    wanted = {column: filled(value, subset) for column, value in layout.where.items()}
    rows = [
        row
        for file in files
        for row in _file_rows(find_file(root, filled(file, subset)), fields)
        if all(str(row.values.get(column)) == value for column, value in wanted.items())
    ]
    if layout.draw is not None and layout.draw < len(rows):
        rows = _drawn(layout, rows)
    if layout.labels:
        column = fields.get("label", "label")
        rows = [row for row in rows if str(row.values.get(column)) in layout.labels]
    if not rows:
        place = f" of subset {subset!r}" if subset else ""
        raise DataError(f"{root}: {name} has no rows{place} in {', '.join(files)}")
    return rows


def _drawn(layout: Layout, rows: list[Row]) -> list[Row]:
    """As many rows, each label in its share: what MTEB draws of larger sets, with its seed."""
    import numpy as np

    try:
        from datasets.utils.stratify import stratified_shuffle_split_generate_indices as draws
    except ImportError:
        raise MissingExtraError("datasets", "mteb", "MTEB's draw from a larger set") from None
    names = layout.label_order or sorted({str(row.part("label")) for row in rows})
    labels = np.array([names.index(str(row.part("label"))) for row in rows])
    num_test = layout.draw or len(rows)
    generator = np.random.default_rng(MTEB_SEED)
    _, chosen = next(draws(labels, len(rows) - num_test, num_test, rng=generator))
    return [rows[place] for place in chosen]


def _file_rows(path: Path, fields: Mapping[str, str]) -> Iterator[Row]:
    for number, values in parsed(path):
        yield Row(path, number, values, fields)


def parsed(path: Path) -> tuple[tuple[int, dict[str, Any]], ...]:
    """A file's rows with their numbers."""
    return _parsed(path, _file_hash(path))


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, sha256: str) -> tuple[tuple[int, dict[str, Any]], ...]:
    """The last few files are held, by content: one may hold the rows of a hundred subsets."""
    return tuple(read_jsonl(path))


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_of(layout: Layout, root: Path, files: tuple[str, ...], subset: str) -> str:
    """Of the files' names and bytes, and of what of them is read."""
    paths = [find_file(root, filled(file, subset)) for file in files]
    told = [
        [[path.name, _file_hash(path)] for path in paths],
        subset,
        sorted(layout.fields.items()),
        sorted(layout.where.items()),
        sorted(layout.labels.items()),
        layout.draw,
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def label_of(layout: Layout, row: Row) -> str:
    label = row.part("label")
    if not isinstance(label, str | int) or label == "":
        raise DataError(f"{row.path}:{row.number}: label {label!r} is no string or whole number")
    return layout.labels.get(str(label), str(label))


def filled(text: str, subset: str) -> str:
    first, _, second = subset.partition(":")
    for slot, value in (("{subset}", subset), ("{a}", first), ("{b}", second)):
        text = text.replace(slot, value)
    return text
