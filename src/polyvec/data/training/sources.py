"""Examples from a `data` table: a file, a folder, a named set or a data set of the hub."""

import functools
import random
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polyvec.data.training.cells import Cells, EmptyTextError, Labels
from polyvec.data.training.corpora import CORPUS_FORMATS, is_beir
from polyvec.data.training.files import FILES, hub_rows, is_data_file, set_name, table_rows
from polyvec.data.training.formats import FORMATS, detected, numbered
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
    found = data_table(preset(table, data_folder, where), where)
    if found.format is not None and found.format not in {*FORMATS, *CORPUS_FORMATS}:
        forms = known(found.format, {*FORMATS, *CORPUS_FORMATS})
        raise SettingsError(f"{where} format {found.format!r} is not known.{forms}")
    sets = [each for source in _sources(found, where) for each in _split(_read(source, seed))]
    total = sum(len(each.rows) for each in sets)
    if found.limit is not None and total > found.limit and len(sets) > 1:
        raise DataError(f"{where}: limit applies to one data set, and {found.path} has {len(sets)}")
    return sets


def rows_of(
    records: Iterable[Mapping[str, Any]], *, name: str = "", seed: int = 42, **options: Any
) -> TrainingSet:
    """Examples of dicts in memory, or of a Hugging Face dataset.

    Columns that no form has are read in sentence-transformers' order: anchor, positive, negatives.
    The options are those of a `data` table.
    """
    table = data_table({"path": name or "records", **options})
    numbers = ((f"{name or 'row'} {number}", dict(row)) for number, row in enumerate(records))
    first = next(numbers, None)
    if first is None:
        raise DataError(f"{name or 'the data set'} is empty")
    fits = any(form.columns and form.matches(first[1]) for form in FORMATS.values())
    if table.format is None and not table.columns and not fits:
        table = replace(table, format="columns")
    source = _Source(name, table, _chain(first, numbers), name or "the data set")
    return _read(source, seed)


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
    name: str
    table: DataTable
    rows: Rows
    place: str


def _sources(table: DataTable, where: str) -> Iterator[_Source]:
    if table.hub:
        yield _Source(table.name or table.hub, table, hub_rows(table), f"hub {table.hub}")
        return
    path = Path(table.path or "")
    if _is_corpus(table):
        yield _Source(table.name or path.name, table, (), str(path))
        return
    if not path.is_dir():
        yield _Source(table.name or set_name(path), table, table_rows(path), str(path))
        return
    files = sorted(each for each in path.iterdir() if is_data_file(each))
    if not files:
        raise DataError(f"{path}: no data files. Known: {', '.join(FILES)}, each also .gz.")
    for file in files:
        own = replace(table, in_batch=table.in_batch and NO_IN_BATCH not in str(file))
        yield _Source(set_name(file), own, table_rows(file), str(file))


def _is_corpus(table: DataTable) -> bool:
    """Whether documents are named by id, so that rows come from several files."""
    if table.format is not None:
        return table.format in CORPUS_FORMATS
    return table.corpus is not None or (table.path is not None and is_beir(Path(table.path)))


def _read(source: _Source, seed: int) -> TrainingSet:
    table, labels = source.table, Labels()
    rows: list[TrainingRow] = []
    num_skipped, name = 0, table.format
    from_corpus = _is_corpus(table)
    if from_corpus:
        rows = CORPUS_FORMATS[name or ("tevatron_ids" if table.corpus else "beir")](table)
        form = None
    else:
        form = FORMATS[name] if name else None
        for place, values in source.rows:
            cells = Cells(place, values, labels)
            if not cells.selected(table.where):
                continue
            try:
                cells = cells.renamed(table.columns)
                form = form or FORMATS[detected(cells.values, place)]
                rows.append(form.read(cells))
            except EmptyTextError:
                if not table.skip_empty:
                    raise
                num_skipped += 1
    rows = numbered(rows, labels)
    if form and form.regroup and rows:
        rows = form.regroup(rows, seed)
    rows = _selected(rows, table, seed, from_corpus=from_corpus)
    if not rows:
        raise DataError(f"{source.place}: no rows to train on{_why(table, num_skipped)}")
    words = sorted(labels) if labels else ()
    named = [_finished(row, source.name, table) for row in rows]
    return TrainingSet(source.name, named, table, tuple(words), num_skipped)


def _selected(
    rows: list[TrainingRow], table: DataTable, seed: int, *, from_corpus: bool
) -> list[TrainingRow]:
    if table.min_score is not None and not from_corpus:
        rows = [
            replace(row, score=None)
            for row in rows
            if row.score is not None and row.score >= table.min_score
        ]
    if table.held_out:
        wanted = table.part == "held_out"
        rows = [row for row in rows if is_held_out(row.query, table.held_out) == wanted]
    if table.limit is not None and len(rows) > table.limit:
        places = sorted(random.Random(seed).sample(range(len(rows)), table.limit))
        rows = [rows[place] for place in places]
    return rows


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


def _split(found: TrainingSet) -> list[TrainingSet]:
    """One set for each `dataset` of the rows: MEDI's tasks are mixed as data sets of their own."""
    names = dict.fromkeys(row.dataset for row in found.rows)
    if len(names) == 1:
        return [found]
    parts: dict[str, list[TrainingRow]] = {name: [] for name in names}
    for row in found.rows:
        parts[row.dataset].append(row)
    return [replace(found, name=name, rows=rows) for name, rows in parts.items()]


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


def _chain(
    first: tuple[str, Mapping[str, Any]], rest: Iterator[tuple[str, dict[str, Any]]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield first
    yield from rest
