"""Read a task's data: from a source, or from a folder whose files show what kind it is."""

import dataclasses
from pathlib import Path

from polyvec.data.tasks.kinds import KINDS, TaskKind, task_kind
from polyvec.data.tasks.retrieval import candidates
from polyvec.data.tasks.sets import RetrievalSet, TaskSet
from polyvec.data.tasks.source import TaskFiles, TaskSource, parsed
from polyvec.data.texts import find_file
from polyvec.errors import DataError, known
from polyvec.storage.files import as_path


def read_task(source: TaskSource, root: str | Path, name: str, subset: str = "") -> TaskSet:
    """The data of a task, or of one subset of it.

    Raises DataError naming file, line and id for what is missing or malformed.
    """
    return task_kind(source.kind, name).read(TaskFiles(source, Path(root), name, subset))


def read_folder(folder: str | Path, split: str = "test", kind: str | None = None) -> TaskSet:
    """The data set in a folder; its kind follows from its files and their fields, unless given.

    With qrels/ it is retrieval, with top_ranked/<split>.jsonl beside it reranking, with an
    "instruction" in the rows of queries.jsonl instruction retrieval. Otherwise the fields of
    <split>.jsonl decide: sentence1 and sentence2 with a score, with a 0/1 label, or alone
    (bitext); text and label with train.jsonl (classification) or without (clustering); text with
    summaries. Files may be gzipped. Raises DataError naming file, line and id.
    """
    path = as_path(folder, "folder").resolve()  # "." has a name, too
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    given = task_kind(kind, str(path)) if kind else None
    if (path / "qrels").is_dir():
        return _ranked(path, split, given)
    file = split_file(path, path, split, "jsonl")
    train = any((path / name).exists() for name in ("train.jsonl", "train.jsonl.gz"))
    found = given or _kind(file, train)
    if not found.fields:
        raise DataError(f"{path}: no qrels/, which {found.name} needs")
    if found.trains and split == "train":
        raise DataError(f"{path}: a classifier is trained on the split 'train'; score another one")
    source = TaskSource(
        found.name,
        (f"{split}.jsonl",),
        train=("train.jsonl",) if found.trains else (),
        split=split,
    )
    return read_task(source, path, path.name)


def split_file(folder: Path, place: Path, split: str, suffix: str) -> Path:
    """`<split>.<suffix>` or its gzipped twin; DataError that names the splits there are."""
    names = {p.name.removesuffix(".gz") for p in place.iterdir()}
    splits = {n.removesuffix(f".{suffix}") for n in names if n.endswith(f".{suffix}")}
    if not splits:
        raise DataError(f"{place}: not a data set, it has no <split>.{suffix}")
    if split not in splits:
        raise DataError(f"{folder}: no split {split!r}.{known(split, splits)}")
    return find_file(place, f"{split}.{suffix}")


def _ranked(path: Path, split: str, given: TaskKind | None) -> TaskSet:
    """A folder with qrels/, of the given kind or the one that its files show."""
    split_file(path, path / "qrels", split, "tsv")
    rows = parsed(find_file(path, "queries.jsonl"))
    ranked, top = (path / "top_ranked").is_dir(), "retrieval"
    if rows and "instruction" in rows[0][1]:
        top = "instruction_retrieval"
    elif ranked:
        top = "reranking"
    kind = given or KINDS[top]
    if kind.fields:
        raise DataError(f"{path}: has qrels/, so it cannot be read as {kind.name}")
    source = TaskSource(
        kind.name,
        corpus="corpus.jsonl",
        queries="queries.jsonl",
        qrels=f"qrels/{split}.tsv",
        split=split,
    )
    found = read_task(source, path, path.name)
    if kind.name != "reranking" or not ranked or not isinstance(found, RetrievalSet):
        return found
    file = split_file(path, path / "top_ranked", split, "jsonl")
    return dataclasses.replace(found, candidates=candidates(file, found))


def _kind(file: Path, train: bool) -> TaskKind:
    """The first kind whose fields the file's first row has."""
    rows = parsed(file)
    if not rows:
        raise DataError(f"{file}: no rows")
    fields = set(rows[0][1])
    by_rows = [kind for kind in KINDS.values() if kind.fields]
    for kind in by_rows:
        if fields.issuperset(kind.fields) and (train or not kind.trains):
            return kind
    shown = "; ".join(f"{kind.name}: {', '.join(kind.fields)}" for kind in by_rows)
    raise DataError(
        f"{file}:{rows[0][0]}: no kind of task has the fields {', '.join(sorted(fields))}. "
        f"Known: {shown}."
    )
