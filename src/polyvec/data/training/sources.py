"""Examples from a `data` table: a file, a folder, a named set or a data set of the hub."""

import functools
import itertools
import random
import tomllib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polyvec.data.training.cells import Cells, Columns, EmptyTextError, Labels
from polyvec.data.training.corpora import CORPUS_FORMATS, is_beir
from polyvec.data.training.files import (
    FILES,
    Again,
    RowsOnDisk,
    is_data_file,
    plain_values,
    records_again,
    rows_again,
    set_name,
    table_rows,
)
from polyvec.data.training.formats import (
    FORMATS,
    Format,
    detected,
    is_known,
    numbered,
    read_row,
)
from polyvec.data.training.hub import hub_files, hub_rows
from polyvec.data.training.instructions import stored_instruction
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.table import DataTable, data_table
from polyvec.data.words import hash64
from polyvec.errors import DataError, SettingsError, known

NAMED_SETS = Path(__file__).with_name("named_sets.toml")
NO_IN_BATCH = "no_in_batch_neg"  # FlagEmbedding's ending of file and folder names

Rows = Iterable[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The examples of one data set, and the table that says how they are drawn.

    labels: the words for the numbers in `label`, where the data have words.
    num_skipped: rows left out because a text was empty.
    """

    name: str
    rows: Sequence[TrainingRow]
    table: DataTable = field(default_factory=DataTable)
    labels: tuple[str, ...] = ()
    num_skipped: int = 0


def training_rows(
    table: Mapping[str, Any], data_folder: str | Path | None = None, *, seed: int = 42
) -> list[TrainingRow]:
    """All examples of a `data` table, in the order of the files, with all their documents."""
    return [row for each in training_sets(table, data_folder, seed=seed) for row in each.rows]


def training_sets(
    table: Mapping[str, Any],
    data_folder: str | Path | None = None,
    *,
    seed: int = 42,
    where: str = "data",
) -> list[TrainingSet]:
    """The data sets of a `data` table, each with at least one row.

    Raises SettingsError for the table, DataError naming file and line for the data.
    """
    found = source_table(table, data_folder, where)
    return [each for source in _sources(found, where) for each in _read(source, seed)]


def source_table(
    table: Mapping[str, Any], data_folder: str | Path | None = None, where: str = "data"
) -> DataTable:
    """The checked table; nothing of the data is read.

    Raises SettingsError for the table, DataError for a file or folder that is not there.
    """
    found = data_table(preset(table, data_folder, where), where)
    if found.format is not None and found.format not in {*FORMATS, *CORPUS_FORMATS}:
        forms = known(found.format, {*FORMATS, *CORPUS_FORMATS})
        raise SettingsError(f"{where} format {found.format!r} is not known.{forms}")
    if found.format == "successive" and found.held_out:
        raise SettingsError(f"{where}: of successive texts none can be held out from the others")
    for name in (found.path, found.corpus):
        if name and not Path(name).exists() and not Path(f"{name}.gz").exists():
            raise DataError(f"{where}: {name}: no such file or folder")
    if "split" in table and not _has_splits(found):
        raise SettingsError(
            f"{where}: {found.path}: has no splits; split {found.split!r} selects qrels of a "
            "folder of BEIR's form, or a part of a data set of the hub"
        )
    return found


def _has_splits(table: DataTable) -> bool:
    if table.format is not None and table.format in CORPUS_FORMATS:
        return table.format in ("answer_windows", "beir")
    return bool(table.hub) or is_beir(Path(table.path or ""))


def rows_of(
    records: Iterable[Mapping[str, Any]], *, name: str = "", seed: int = 42, **options: Any
) -> TrainingSet:
    """Examples of dicts in memory, or of a Hugging Face dataset.

    Columns that no form has are read in sentence-transformers' order: anchor, positive, negatives.
    The options are those of a `data` table.
    """
    table = data_table({"path": name or "records", **options})
    numbers = (
        (f"{name or 'row'} {number}", plain_values(row)) for number, row in enumerate(records)
    )
    first = next(numbers, None)
    if first is None:
        raise DataError(f"{name or 'the data set'} is empty")
    if table.format is None and not table.columns and not is_known(first[1]):
        table = replace(table, format="columns")
    place = name or "the data set"
    again = None if isinstance(records, list | tuple) else records_again(records, name or "row")
    source = _Source(name, table, itertools.chain([first], numbers), place, again)
    sets = _read(source, seed)
    if len(sets) > 1:
        raise DataError(f"{place}: the rows are of {len(sets)} tasks; make a data set of each")
    return sets[0]


@functools.cache
def named_sets() -> Mapping[str, Mapping[str, Any]]:
    """The tables of the named sets, with paths below a folder of data sets."""
    found: dict[str, Mapping[str, Any]] = tomllib.loads(NAMED_SETS.read_text("utf-8"))
    return found


def preset(
    table: Mapping[str, Any], data_folder: str | Path | None, where: str
) -> Mapping[str, Any]:
    """The table with what is stored for its name; what it says itself goes first."""
    name = table.get("name")
    if not isinstance(name, str) or table.get("path") or table.get("hub"):
        return table
    if name not in named_sets():
        raise DataError(f"{where}: no training set {name!r}.{known(name, named_sets())}")
    if data_folder is None:
        raise DataError(
            f"{where}: training set {name!r} needs the folder of data sets: --data or POLYVEC_DATA"
        )
    stored = dict(named_sets()[name])
    for key in ("path", "corpus"):
        if key in stored:
            stored[key] = str(Path(data_folder) / stored[key])
    return {**stored, **table}


# ---- one data set -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows of a data set. `again` reads a row by its number, where that is possible and saves
    memory."""

    name: str
    table: DataTable
    rows: Rows
    place: str
    again: Again | None = None


def _sources(table: DataTable, where: str) -> Iterator[_Source]:
    if table.hub and not table.files:
        for found in hub_rows(table):
            yield _Source(found.name, table, found.rows, f"hub {found.name}", found.again)
        return
    path = Path(table.path or "")
    if _is_corpus(table):
        yield _Source(table.name or path.name, table, (), str(path))
        return
    files = hub_files(table) if table.hub else [path]
    if not table.hub and path.is_dir():
        files = sorted(each for each in path.iterdir() if is_data_file(each))
        if not files:
            raise DataError(f"{path}: no data files. Known: {', '.join(FILES)}, each also .gz.")
    for file in files:
        own = replace(table, in_batch=table.in_batch and NO_IN_BATCH not in str(file))
        name = table.name if table.name and len(files) == 1 else set_name(file)
        yield _Source(name, own, table_rows(file), str(file), rows_again(file))


def _form(cells: Cells, table: DataTable) -> str:
    """The form that a row shows; sentence-transformers' own data sets go by their order."""
    by_order = (table.hub or "").startswith("sentence-transformers/") and not table.columns
    if by_order and not is_known(cells.values):
        return "columns"
    return detected(cells.values, cells.place)


def _is_corpus(table: DataTable) -> bool:
    """Whether documents are named by id, so that rows come from several files."""
    if table.format is not None:
        return table.format in CORPUS_FORMATS
    return table.corpus is not None or (table.path is not None and is_beir(Path(table.path)))


def _read(source: _Source, seed: int) -> list[TrainingSet]:
    """The rows that the table selects: in memory, or read again each time if that saves much.

    A set for each task that the rows name (MEDI), to be mixed as data sets of their own.
    """
    table, labels = source.table, Labels()
    form = FORMATS.get(table.format or "")
    tasks: dict[str, Sequence[TrainingRow]] = {}
    num_skipped = 0
    if _is_corpus(table):
        name = table.format or ("tevatron_ids" if table.corpus else "beir")
        table = replace(table, min_score=None)  # has selected the positives
        rows = [row for row in CORPUS_FORMATS[name](source.table) if _wanted(row, table)]
    else:
        rows = []
        places: dict[str, array[int]] = defaultdict(lambda: array("q"))
        for number, (place, values) in enumerate(source.rows):
            cells = Cells(place, values, labels)
            if not cells.selected(table.where):
                continue
            try:
                cells = cells.renamed(table.columns)
                form = form or FORMATS[_form(cells, table)]
                row = read_row(form, cells)
                if table.columns and not number:
                    _check_columns(form, Cells(place, values), table.columns)
            except EmptyTextError:
                if not table.skip_empty:
                    raise
                num_skipped += 1
                continue
            if source.again is None or form.regroup:
                rows.append(row)
            elif _wanted(row, table):
                places[row.dataset].append(number)
        if form and source.again and not form.regroup:
            again = _Again(source.name, source.again, form, table, labels)
            tasks = {task: RowsOnDisk(numbers, again) for task, numbers in places.items()}
        # Before rows become parts of others: a text that is held out must not be a negative.
        rows = [row for row in numbered(rows, labels) if _wanted(row, table)]
        if form and form.regroup and rows:
            rows = form.regroup(rows, seed)
    finished: dict[str, list[TrainingRow]] = defaultdict(list)
    for row in rows:
        finished[row.dataset].append(_finished(row, source.name, table))
    tasks.update(finished)
    if not tasks:
        raise DataError(f"{source.place}: no rows to train on{_why(table, num_skipped)}")
    return [
        TrainingSet(
            f"{source.name}/{task}" if task else source.name,
            _limited(same, table, seed),
            table,
            tuple(sorted(labels)),
            num_skipped,
        )
        for task, same in tasks.items()
    ]


def _check_columns(form: Format, cells: Cells, columns: Columns) -> None:
    """Raises SettingsError for a field of `columns` that the form does not read."""
    renamed = cells.renamed(columns)
    row = read_row(form, renamed)
    for name in columns:
        others = {key: value for key, value in columns.items() if key != name}
        try:
            unread = read_row(form, cells.renamed(others)) == row
        except DataError:
            unread = False
        if unread and cells.values.get(name) != renamed.values[name]:
            raise SettingsError(
                f"{cells.place}: columns names a field {name!r}, which this form does not read."
                f"{known(name, {*form.columns, *columns} - {name})}"
            )


@dataclass(frozen=True, slots=True)
class _Again:
    """Reads a row as it was read before."""

    name: str
    again: Again
    form: Format
    table: DataTable
    labels: Labels

    def __call__(self, number: int) -> TrainingRow:
        cells = Cells(*self.again(number), self.labels).renamed(self.table.columns)
        (row,) = numbered([read_row(self.form, cells)], self.labels)
        return _finished(row, self.name, self.table)


def _wanted(row: TrainingRow, table: DataTable) -> bool:
    """Whether the row's score and the part of the data that its query is in are asked for."""
    least = table.min_score
    if least is not None and not (row.score is not None and row.score >= least):
        return False
    if not table.held_out:
        return True
    return is_held_out(row.query, table.held_out) == (table.part == "held_out")


def _limited(rows: Sequence[TrainingRow], table: DataTable, seed: int) -> Sequence[TrainingRow]:
    if table.limit is None or len(rows) <= table.limit:
        return rows
    places = sorted(random.Random(seed).sample(range(len(rows)), table.limit))
    if isinstance(rows, RowsOnDisk):
        return rows.chosen(places)
    return [rows[place] for place in places]


def is_held_out(query: str, share: float) -> bool:
    """Whether the query is in the share kept from training: the same for equal queries, always."""
    return hash64(f"held out {query}") < share * 2**64


def _finished(row: TrainingRow, name: str, table: DataTable) -> TrainingRow:
    """The row with what the table says of all of them."""
    dataset = f"{name}/{row.dataset}" if row.dataset else name
    instruction = table.instructions.get(name, table.instruction)
    stored = stored_instruction(name, row.place) if table.instructed else None
    if stored:
        instruction = instruction or stored.instruction
    return replace(
        row,
        score=row.score if table.min_score is None else None,
        matches=row.matches or table.min_score is not None,
        dataset=dataset,
        instruction=row.instruction if instruction is None else instruction,
        document_instruction=(
            row.document_instruction
            if table.document_instruction is None
            else table.document_instruction
        ),
        symmetric=row.symmetric or table.symmetric or (stored is not None and stored.symmetric),
        in_batch=row.in_batch and table.in_batch,
    )


def _why(table: DataTable, num_skipped: int) -> str:
    reasons = []
    if num_skipped:
        reasons.append(f"{num_skipped} rows had an empty text")
    if table.where:
        reasons.append(f"where = {dict(table.where)}")
    if table.min_score is not None:
        reasons.append(f"min_score = {table.min_score}")
    if table.held_out:
        reasons.append(f"part = {table.part!r} of held_out = {table.held_out}")
    return f" ({'; '.join(reasons)})" if reasons else ": it is empty"
