"""From files to a task's data: a reader for each kind of task."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyvec.data.tasks import beir as sets
from polyvec.data.tasks.rows import Layout, Row, filled, hash_of, label_of, parsed, rows_of
from polyvec.data.tasks.sets import (
    BitextSet,
    ClassificationSet,
    ClusteringSet,
    ConditionalStsSet,
    InstructionSet,
    PairSet,
    RetrievalSet,
    StsSet,
    SummarySet,
)
from polyvec.data.texts import find_file, read_jsonl, read_lines
from polyvec.errors import DataError, known

MTEB_SEED = 42

TaskSet = (
    StsSet
    | RetrievalSet
    | ClassificationSet
    | ClusteringSet
    | PairSet
    | BitextSet
    | SummarySet
    | ConditionalStsSet
    | InstructionSet
)


def read_task(layout: Layout, root: str | Path, name: str, subset: str = "") -> TaskSet:
    """The data of a task, or of one subset of it.

    Raises DataError naming file, line and id for what is missing or does not fit.
    """
    reader = READERS.get(layout.kind)
    if reader is None:
        raise DataError(
            f"{name}: no task is of kind {layout.kind!r}." + known(layout.kind, READERS)
        )
    return reader(layout, Path(root), name, subset)


def _sts(layout: Layout, root: Path, name: str, subset: str) -> StsSet:
    rows = rows_of(layout, root, layout.files, subset, name)
    return StsSet(
        name,
        layout.split,
        tuple(row.text("sentence1") for row in rows),
        tuple(row.text("sentence2") for row in rows),
        tuple(row.number_of("score") for row in rows),
        hash_of(layout, root, layout.files, subset),
    )


def _conditional(layout: Layout, root: Path, name: str, subset: str) -> ConditionalStsSet:
    rows = rows_of(layout, root, layout.files, subset, name)
    return ConditionalStsSet(
        name,
        layout.split,
        tuple(row.text("sentence1") for row in rows),
        tuple(row.text("sentence2") for row in rows),
        tuple(row.text("condition") for row in rows),
        tuple(row.number_of("score") for row in rows),
        hash_of(layout, root, layout.files, subset),
    )


def _pairs(layout: Layout, root: Path, name: str, subset: str) -> PairSet:
    rows = rows_of(layout, root, layout.files, subset, name)
    return PairSet(
        name,
        layout.split,
        tuple(row.text("sentence1") for row in rows),
        tuple(row.text("sentence2") for row in rows),
        tuple(_binary(layout, row) for row in rows),
        hash_of(layout, root, layout.files, subset),
    )


def _binary(layout: Layout, row: Row) -> int:
    label = label_of(layout, row)
    if label not in ("0", "1"):
        raise DataError(f"{row.path}:{row.number}: label {label!r} of a pair is not 0 or 1")
    return int(label)


def _classification(layout: Layout, root: Path, name: str, subset: str) -> ClassificationSet:
    train = rows_of(layout, root, layout.train, subset, name)
    test = rows_of(layout, root, layout.files, subset, name)
    return ClassificationSet(
        name,
        layout.split,
        tuple(row.text("text") for row in train),
        tuple(label_of(layout, row) for row in train),
        tuple(row.text("text") for row in test),
        tuple(label_of(layout, row) for row in test),
        hash_of(layout, root, (*layout.train, *layout.files), subset),
        layout.samples_per_label,
    )


def _clustering(layout: Layout, root: Path, name: str, subset: str) -> ClusteringSet:
    rows = rows_of(layout, root, layout.files, subset, name)
    parts = _parts(len(rows), layout.num_parts) if layout.protocol == "sets" else ()
    return ClusteringSet(
        name,
        layout.split,
        tuple(row.text("text") for row in rows),
        tuple(label_of(layout, row) for row in rows),
        hash_of(layout, root, layout.files, subset),
        layout.protocol,
        parts,
        layout.max_texts,
        layout.fraction,
    )


def _parts(num_rows: int, num_parts: int) -> tuple[tuple[int, ...], ...]:
    """Rows of consecutive parts of nearly equal size, the first ones a row larger."""
    size, more = divmod(num_rows, num_parts)
    ends = [i * size + min(i, more) for i in range(num_parts + 1)]
    return tuple(tuple(range(a, b)) for a, b in itertools.pairwise(ends))


def _bitext(layout: Layout, root: Path, name: str, subset: str) -> BitextSet:
    if layout.qrels:
        return _mined(layout, root, name, subset)
    rows = rows_of(layout, root, layout.files, subset, name)
    return BitextSet(
        name,
        layout.split,
        tuple(row.text("sentence1") for row in rows),
        tuple(row.text("sentence2") for row in rows),
        tuple((i, i) for i in range(len(rows))),
        hash_of(layout, root, layout.files, subset),
    )


def _mined(layout: Layout, root: Path, name: str, subset: str) -> BitextSet:
    """Two files of sentences with ids, and a file of the pairs among them (BUCC)."""
    sides: list[tuple[str, ...]] = []
    places: list[dict[str, int]] = []
    for file in layout.files:
        rows = rows_of(layout, root, (file,), subset, name)
        ids = [row.text("id") for row in rows]
        if len(set(ids)) < len(ids):
            raise DataError(f"{rows[0].path}: an id stands there twice")
        sides.append(tuple(row.text("text") for row in rows))
        places.append({key: place for place, key in enumerate(ids)})
    path = find_file(root, layout.qrels)
    gold = []
    for number, line in read_lines(path):
        cells = line.split("\t")
        if number == 1 or not line.strip():
            continue
        for cell, known_ids in zip(cells, places, strict=False):
            if cell not in known_ids:
                raise DataError(f"{path}:{number}: {cell!r} is no id of the sentences")
        gold.append((places[0][cells[0]], places[1][cells[1]]))
    files = (*layout.files, layout.qrels)
    return BitextSet(
        name, layout.split, sides[0], sides[1], tuple(gold), hash_of(layout, root, files, subset)
    )


def _summaries(layout: Layout, root: Path, name: str, subset: str) -> SummarySet:
    rows = rows_of(layout, root, layout.files, subset, name)
    machine, scores = zip(*(_judged(row) for row in rows), strict=True)
    return SummarySet(
        name,
        layout.split,
        tuple(row.text("text") for row in rows),
        tuple(row.strings("human_summaries") for row in rows),
        machine,
        scores,
        hash_of(layout, root, layout.files, subset),
    )


# What experts judge of a summary; its score is their mean, as in MTEB.
ASPECTS = ("coherence", "consistency", "fluency", "relevance")


def _judged(row: Row) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Machine summaries and scores: plain lists, or a list of tables with the experts' scores."""
    machine = row.part("machine_summaries")
    if isinstance(machine, list) and machine and all(isinstance(each, dict) for each in machine):
        texts = tuple(each.get("summary", "") for each in machine)
        scores = tuple(sum(float(each[a]) for a in ASPECTS) / len(ASPECTS) for each in machine)
        return texts, scores
    scores = row.part("scores")
    texts = row.strings("machine_summaries")
    if not isinstance(scores, list) or len(scores) != len(texts):
        raise DataError(f"{row.path}:{row.number}: 'scores' are not one a machine summary")
    return texts, tuple(float(score) for score in scores)


def _retrieval(layout: Layout, root: Path, name: str, subset: str) -> RetrievalSet:
    if layout.files:
        return _found_by_pair(layout, root, name, subset)
    found = sets.read_retrieval(
        find_file(root, filled(layout.corpus, subset)),
        find_file(root, filled(layout.queries, subset)),
        find_file(root, filled(layout.qrels, subset)),
        name,
        layout.split,
        titles=layout.titles,
    )
    changes: dict[str, Any] = {}
    if not layout.titles or layout.only_judged:
        told = f"{found.sha256} titles={layout.titles} only_judged={layout.only_judged}"
        changes["sha256"] = hashlib.sha256(told.encode()).hexdigest()
    if layout.only_judged:
        judged = {document for grades in found.qrels.values() for document in grades}
        corpus = {key: text for key, text in found.corpus.items() if key in judged}
        changes |= {"corpus": corpus}
    if layout.rerank_judged:
        pools = {query: tuple(grades) for query, grades in found.qrels.items()}
        changes |= {"candidates": pools}
    return dataclasses.replace(found, **changes)


def _found_by_pair(layout: Layout, root: Path, name: str, subset: str) -> RetrievalSet:
    """Each row's "query" is answered by its "document"."""
    rows = rows_of(layout, root, layout.files, subset, name)
    corpus: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    known_documents: dict[str, str] = {}
    known_queries: dict[str, str] = {}
    for place, row in enumerate(rows):
        text, document = row.text("query"), row.text("document")
        if not text.strip():
            raise DataError(f"{row.path}:{row.number}: the query is empty")
        document_id, query_id = f"d{place}", f"q{place}"
        if layout.merge:
            document_id = known_documents.setdefault(document, document_id)
            query_id = known_queries.setdefault(text, query_id)
        corpus[document_id], queries[query_id] = document, text
        qrels.setdefault(query_id, {})[document_id] = 1
    digest = hash_of(layout, root, layout.files, subset)
    return RetrievalSet(name, layout.split, corpus, queries, qrels, digest)


def _instructions(layout: Layout, root: Path, name: str, subset: str) -> InstructionSet:
    """Queries that stand there once for each instruction, as "701-og" and "701-changed".

    A row of queries.jsonl has _id, text and instruction, and "query" where the text's own id is
    not the part before "-og" or "-changed". Judgements are by _id.
    """
    whole = _retrieval(layout, root, name, subset)
    told: dict[str, list[tuple[str, str]]] = {}
    path = find_file(root, filled(layout.queries, subset))
    for number, values in parsed(path):
        key, instruction = str(values["_id"]), values.get("instruction")
        if key not in whole.queries:
            continue
        if not isinstance(instruction, str):
            raise DataError(f"{path}:{number}: 'instruction' is {instruction!r}, not a string")
        query = str(values.get("query") or key.removesuffix("-og").removesuffix("-changed"))
        told.setdefault(query, []).append((key, instruction))
    pairs = [{key.removeprefix(query) for key, _ in rows} for query, rows in told.items()]
    changed = all(ends == {"-og", "-changed"} for ends in pairs)
    if changed:  # the original first
        told = {
            query: sorted(rows, key=lambda row: row[0], reverse=True)
            for query, rows in told.items()
        }
    return InstructionSet(
        name,
        layout.split,
        whole.corpus,
        {query: whole.queries[rows[0][0]] for query, rows in told.items()},
        {query: tuple(instruction for _, instruction in rows) for query, rows in told.items()},
        {query: tuple(whole.qrels[key] for key, _ in rows) for query, rows in told.items()},
        {q: whole.candidates[rows[0][0]] for q, rows in told.items() if whole.candidates},
        changed,
        whole.sha256,
    )


READERS: dict[str, Callable[[Layout, Path, str, str], TaskSet]] = {
    "sts": _sts,
    "conditional-sts": _conditional,
    "pair": _pairs,
    "classification": _classification,
    "clustering": _clustering,
    "bitext": _bitext,
    "summarization": _summaries,
    "retrieval": _retrieval,
    "instruction": _instructions,
}


def read_folder(folder: str | Path, split: str = "test", kind: str | None = None) -> TaskSet:
    """The data set in a folder; its kind is told by its files and their fields, unless given.

    qrels/: retrieval; reranking with top_ranked/<split>.jsonl beside it, instructions where
    queries.jsonl has them. Else the fields of <split>.jsonl: sentence1 and sentence2 with a score,
    a 0/1 label, or alone (bitext); text and label, a classification where train.jsonl stands
    beside it, else a clustering; text with summaries. Raises DataError naming file, line and id.
    """
    path = Path(folder).resolve()
    if not path.is_dir() or (path / "qrels").is_dir():
        return _ranked_folder(path, split)
    file = sets.split_file(path, path, split, "jsonl")
    kind = kind or _kind(
        file, (path / "train.jsonl").exists() or (path / "train.jsonl.gz").exists()
    )
    if kind == "classification" and split == "train":
        raise DataError(f"{folder}: a classifier learns on the split 'train', score another one")
    name = f"{split}.jsonl"
    layout = Layout(
        kind, (name,), ("train.jsonl",) if kind == "classification" else (), split=split
    )
    return read_task(layout, path, path.name)


def _ranked_folder(path: Path, split: str) -> TaskSet:
    """Retrieval; with an instruction in each query's row, or candidates in top_ranked/."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    rows = parsed(find_file(path, "queries.jsonl"))
    if rows and "instruction" in rows[0][1]:
        sets.split_file(path, path / "qrels", split, "tsv")  # names the splits there are
        ids = ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")
        return read_task(Layout("instruction", (), (), *ids, split=split), path, path.name)
    found = sets.read_set(path, split)
    assert isinstance(found, RetrievalSet)
    if not (path / "top_ranked").is_dir():
        return found
    pools = _pools(sets.split_file(path, path / "top_ranked", split, "jsonl"), found)
    return dataclasses.replace(found, candidates=pools)


def _pools(file: Path, data: RetrievalSet) -> dict[str, tuple[str, ...]]:
    """The documents to rank for each query: rows of query-id and corpus-ids."""
    pools: dict[str, tuple[str, ...]] = {}
    for number, row in read_jsonl(file):
        query, documents = str(row.get("query-id")), row.get("corpus-ids")
        if not isinstance(documents, list):
            raise DataError(f"{file}:{number}: 'corpus-ids' is {documents!r}, not a list")
        for document in documents:
            if str(document) not in data.corpus:
                raise DataError(f"{file}:{number}: document {document!r} is not in corpus.jsonl")
        pools[query] = tuple(str(document) for document in documents)
    for query in data.queries:
        if query not in pools:
            raise DataError(f"{file}: no documents to rank for query {query!r}")
    return pools


# The kind of a task by the fields that its rows have; the first that fits.
KINDS_BY_FIELDS = (
    ("conditional-sts", {"sentence1", "sentence2", "condition", "score"}),
    ("sts", {"sentence1", "sentence2", "score"}),
    ("pair", {"sentence1", "sentence2", "label"}),
    ("bitext", {"sentence1", "sentence2"}),
    ("summarization", {"text", "human_summaries", "machine_summaries"}),
    ("classification", {"text", "label"}),
)


def _kind(file: Path, has_train: bool) -> str:
    rows = parsed(file)
    if not rows:
        raise DataError(f"{file}: no rows")
    fields = set(rows[0][1])
    for kind, wanted in KINDS_BY_FIELDS:
        if wanted <= fields:
            return "clustering" if kind == "classification" and not has_train else kind
    raise DataError(
        f"{file}:{rows[0][0]}: fields {', '.join(sorted(fields))} are those of no task. Known: "
        + "; ".join(f"{kind}: {', '.join(sorted(wanted))}" for kind, wanted in KINDS_BY_FIELDS)
    )
