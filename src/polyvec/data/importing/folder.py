"""Write a public data set as a folder that the evaluation and the trainer read."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from polyvec.data.importing.layout import Layout, find_layout, unpacked
from polyvec.data.importing.tables import task_rows, with_scores
from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.named import all_tasks
from polyvec.data.tasks.qrels import read_qrels
from polyvec.data.texts import json_line, kind_of
from polyvec.errors import DataError
from polyvec.storage.files import as_path, atomic_folder

IDS = ("_id", "id", "doc_id", "docid", "query_id", "qid", "pid")
QUERY_IDS, DOCUMENT_IDS = ("query-id", "query_id", "qid"), ("corpus-id", "corpus_id", "pid")
GRADES = ("score", "relevance", "label")
NAME = re.compile(r"\w[\w.-]*")
DID_NOT_TELL = "no kind of task has the fields"
NEVER = "\0"  # no file of this name: an existing folder is not replaced unless it is empty


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written: rows by file, the kind of task, and files that were left out.

    task: of a name in the table of tasks, if that is where its data now are.
    """

    files: Mapping[str, int]
    kind: str
    splits: Sequence[str]
    unread: Sequence[str] = ()
    task: str = ""


def import_data(
    source: str | Path,
    folder: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    only: str | None = None,
) -> Imported:
    """Write the data set in a file, a folder or an archive into a new folder.

    Read are rows (.jsonl, .json, .csv, .tsv, .parquet, tab-separated .txt) whose file's name has
    the split, and BEIR's and MTEB's corpus, queries and qrels. columns: the column of a field. The
    folder is read back before it is put in place, so it is a task of a known kind. Raises
    DataError if it is not, or if the folder is not empty.
    """
    source, target = as_path(source, "source"), as_path(folder, "folder")
    if split is not None and not NAME.fullmatch(split):
        raise DataError(f"split {split!r} is not a name of letters, digits, '.', '_' and '-'")
    _check_fields(columns or {})
    if target.is_dir() and any(target.iterdir()):
        raise DataError(f"{target}: not empty; give a new folder")
    with unpacked(source) as root:
        try:
            layout = find_layout(root, split=split, only=only)
            if layout.corpus and columns:
                raise DataError(
                    f"{source}: --columns {' '.join(columns)} names fields of rows, but this is a "
                    "corpus with queries and qrels; leave it out"
                )
            with atomic_folder(target, replaceable=NEVER) as new:
                files = _write_ranked(layout, new) if layout.corpus else {}
                files = files or _write_rows(layout, new, columns or {})
                kind = _check(source, new, layout)
        except DataError as error:  # an archive's folder is gone when the message is read
            if root == source:
                raise
            told = str(error).replace(f"{root}/", f"{source}: ").replace(str(root), str(source))
            raise DataError(told) from None
    splits = tuple(layout.qrels or layout.rows)
    return Imported(files, kind, splits, layout.unread, _task_name(target))


def _check_fields(columns: Mapping[str, str]) -> None:
    """Raises DataError for what looks like a misspelt field of a task."""
    fields = {name for kind in KINDS.values() for name in kind.fields}
    for field in sorted(columns.keys() - fields):
        if close := get_close_matches(field, fields, n=1, cutoff=0.8):
            raise DataError(f"no field {field!r}. Did you mean {close[0]!r}?")


def _write_rows(layout: Layout, new: Path, columns: Mapping[str, str]) -> dict[str, int]:
    found = {}
    for split, paths in layout.rows.items():
        placed = [each for path in paths for each in task_rows(path, columns)]
        if not placed:
            raise DataError(f"{paths[0]}: no rows")
        rows = with_scores([row for _, row in placed])
        places = (place for place, _ in placed)
        found[f"{split}.jsonl"] = _write(new / f"{split}.jsonl", zip(places, rows, strict=True))
    return found


def _write_ranked(layout: Layout, new: Path) -> dict[str, int]:
    (new / "qrels").mkdir()
    found = {}
    for name, paths in (("corpus.jsonl", layout.corpus), ("queries.jsonl", layout.queries)):
        found[name] = _write(new / name, _texts(paths))
    for split, paths in layout.qrels.items():
        lines = [line for path in paths for line in _judgements(path)]
        (new / "qrels" / f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(f"{line}\n" for line in lines), "utf-8"
        )
        found[f"qrels/{split}.tsv"] = len(lines)
    for split, paths in layout.candidates.items():
        (new / "top_ranked").mkdir(exist_ok=True)
        name = f"top_ranked/{split}.jsonl"
        found[name] = _write(new / name, (each for path in paths for each in task_rows(path, {})))
    return found


def _write(path: Path, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> int:
    """The number of rows; DataError with the place of one that cannot be written."""
    number = 0
    with path.open("wb") as file:
        for place, row in rows:
            try:
                line = json_line(row)
            except DataError as error:
                raise DataError(f"{place}: {error}") from None
            file.write(line)
            number += 1
    return number


def _texts(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) with "_id", each once: MTEB repeats a corpus in every split."""
    seen: dict[str, int] = {}
    for path in paths:
        for place, row in task_rows(path, {}):
            key = next((name for name in IDS if row.get(name) not in (None, "")), None)
            if key is None:
                raise DataError(f"{place}: no id. Known: {', '.join(IDS)}.")
            id = str(row.pop(key))
            content = hash(repr((row.get("title"), row.get("text"))))
            if id not in seen:
                yield place, {"_id": id, **row}
            if seen.setdefault(id, content) != content:
                raise DataError(f"{place}: id {id!r} has another text on an earlier row")


def _judgements(path: Path) -> Iterator[str]:
    """Lines of BEIR's form."""
    if kind_of(path) in ("tsv", "txt"):
        for line in read_qrels(path):
            yield f"{line.query}\t{line.document}\t{line.grade:.15g}"
        return
    for place, row in task_rows(path, {}):
        query, document, grade = (
            next((row[name] for name in names if name in row), None)
            for names in (QUERY_IDS, DOCUMENT_IDS, GRADES)
        )
        if query is None or document is None:
            raise DataError(f"{place}: no {QUERY_IDS[0]} or {DOCUMENT_IDS[0]}")
        yield f"{query}\t{document}\t{1 if grade is None else grade}"


def _check(source: Path, new: Path, layout: Layout) -> str:
    """The kind of the folder's task; DataError if the evaluation could not read it.

    The error names the file as it would have been written, without the folder: it is gone.
    """
    kind = ""
    for split in layout.qrels or layout.rows:
        if split == "train" and not layout.corpus:  # no task of its own
            continue
        try:
            kind = read_folder(new, split).kind
        except DataError as error:
            told = str(error).replace(f"{new}/", "").replace(str(new), "it")
            columns = (DID_NOT_TELL, "no '")  # errors that a column's name may mend
            if not layout.corpus and any(each in told for each in columns):
                told = f"{told.rstrip('.')}. Name a field's column: --columns FIELD=COLUMN"
            raise DataError(f"{source}: {told}") from None
    return kind


def _task_name(folder: Path) -> str:
    """The task of the table whose files are in this folder."""
    folder = folder.resolve()
    for task in all_tasks(folder.parent):
        source = task.source
        ranked = (source.corpus, source.queries, source.qrels)
        files = [name for name in (*source.files, *source.train, *ranked) if name]
        here = [name for name in files if name.startswith(f"{folder.name}/")]
        if here == files and all((folder.parent / name).is_file() for name in files):
            return task.name
    return ""
