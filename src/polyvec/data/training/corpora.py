"""Examples that name their documents by id: BEIR's folders, and files beside a corpus."""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from polyvec.data.tasks.qrels import read_id_pairs, read_qrels
from polyvec.data.texts import find_file
from polyvec.data.training.cells import Cells, EmptyTextError, Where
from polyvec.data.training.files import table_rows
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.table import DataTable
from polyvec.data.words import hash64
from polyvec.errors import DataError

WINDOW = 280  # characters, about 64 tokens
HELD_OUT = 0.2
IDS = ("_id", "docid", "id", "query_id", "pid")


def is_beir(path: Path) -> bool:
    """Whether the folder has the three parts of BEIR's form."""
    return path.is_dir() and (path / "qrels").is_dir() and _exists(path / "corpus.jsonl")


def beir(table: DataTable) -> list[TrainingRow]:
    """A row for each query of qrels/<split>.tsv: positives by falling grade, 0 is a negative.

    `columns` may name other files below the folder: {corpus = ..., queries = ..., qrels = ...}, or
    {pairs = ...}, two columns of ids that match. `where` selects queries by their columns.
    """
    root = Path(table.path or "")
    names = {
        "corpus": "corpus.jsonl",
        "queries": "queries.jsonl",
        "qrels": f"qrels/{table.split}.tsv",
        **{key: str(value) for key, value in table.columns.items()},
    }
    graded: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
    for query, document, grade, place in _judgements(root, names):
        graded[query].append((grade, document, place))
    corpus = texts_by_id(find_file(root, names["corpus"]))
    queries = texts_by_id(find_file(root, names["queries"]))
    chosen = texts_by_id(find_file(root, names["queries"]), table.where) if table.where else queries
    least = table.min_score
    found = []
    for query, judged in graded.items():
        place = judged[0][2]
        if query not in chosen and query in queries:
            continue
        judged.sort(key=lambda each: -each[0])  # stable: equal grades in the order of the file
        is_positive = [grade > 0 if least is None else grade >= least for grade, _, _ in judged]
        texts = [_text(corpus, each[1], each[2]) for each in judged]
        positives = list(itertools.compress(texts, is_positive))
        negatives = [text for (grade, _, _), text in zip(judged, texts, strict=True) if grade <= 0]
        text = _text(queries, query, place)
        empty = not text.strip() or not all(each.strip() for each in (*positives, *negatives))
        if empty and not table.skip_empty:
            raise EmptyTextError(
                f"{place}: query {query!r} or one of its documents is empty. Leave such rows out "
                "with skip_empty = true."
            )
        if positives and not empty:
            found.append(TrainingRow(text, tuple(positives), tuple(negatives), place=place))
    return found


def tevatron_ids(table: DataTable) -> list[TrainingRow]:
    """Tevatron's second form: a query with the ids of its documents in `corpus`."""
    if not table.corpus:
        raise DataError(f"{table.path}: documents are named by id; give their file with corpus")
    corpus = texts_by_id(Path(table.corpus))
    found = []
    for place, values in table_rows(Path(table.path or "")):
        cells = Cells(place, values).renamed(table.columns)
        query = cells.text("query_text" if cells.has("query_text") else "query")
        documents = [
            tuple(_text(corpus, str(key), place) for key in cells.values.get(name) or ())
            for name in ("positive_document_ids", "negative_document_ids")
        ]
        found.append(TrainingRow(query, documents[0], documents[1], place=place))
    return found


def answers(table: DataTable, group: str | None = None) -> list[TrainingRow]:
    """Questions with their answer and the document that holds it: read to be answered from.

    A row's query is the document, its instruction the question, its positives the answers.
    `columns` may name the files below the folder: {corpus = ..., queries = ..., qrels = ...};
    without qrels each query lists its documents in "positives". `where` selects queries, `group`
    those whose document's title is in the part of that name.
    """
    root = Path(table.path or "")
    names = {"corpus": "corpus.jsonl", "queries": "queries.jsonl"}
    names |= {key: str(value) for key, value in table.columns.items()}
    documents = _documents(find_file(root, names["corpus"]))
    judged: dict[str, str] = {}
    if "qrels" in names:
        for line in read_qrels(find_file(root, names["qrels"])):
            judged.setdefault(line.query, line.document)
    found = []
    for place, values in table_rows(find_file(root, names["queries"])):
        cells = Cells(place, values)
        if table.where and not cells.selected(table.where):
            continue
        id = str(cells.value("_id"))
        positives = values.get("positives") or ()
        document = judged.get(id) or next(iter(positives), None)
        given = values.get("answers") or ()
        if document is None or not given:
            if table.skip_empty:
                continue
            raise EmptyTextError(
                f"{place}: question {id!r} has no document or no answer. Leave such rows out with "
                "skip_empty = true."
            )
        title = str(document).partition("#")[0]
        held_out = hash64(f"held out {title}") < HELD_OUT * 2**64
        if group is not None and held_out != (group == "held_out"):
            continue
        text = _text(documents, str(document), place)
        row = TrainingRow(
            text,
            tuple(dict.fromkeys(map(str, given))),
            instruction=cells.text("text"),
            in_batch=False,
            place=place,
        )
        found.append(row)
    return found


def answer_windows(table: DataTable) -> list[TrainingRow]:
    """As `answers`, with the sentences around the answer in place of the document.

    At most WINDOW characters of whole sentences, where the answer is in the document's words.
    split: "train", or "held_out" for a fifth of the titles (ids up to "#"), by their hash.
    """
    if table.split not in ("train", "held_out"):
        raise DataError(f"{table.path}: split {table.split!r} is not 'train' or 'held_out'")
    found = []
    for row in answers(table, group=table.split):
        start = row.query.find(row.positives[0])
        if start >= 0:
            end = start + len(row.positives[0])
            found.append(replace(row, query=window(row.query, start, end)))
    return found


def window(text: str, start: int, end: int) -> str:
    """The sentences that hold start to end, and those around them up to WINDOW characters."""
    ends = [0, *(match.end() for match in re.finditer(r"[.!?]\s+", text)), len(text)]
    first = max(place for place, at in enumerate(ends) if at <= start)
    last = min(place for place, at in enumerate(ends) if at >= end)
    while True:
        wider = [
            (ends[b] - ends[a], a, b)
            for a, b in ((first - 1, last), (first, last + 1))
            if a >= 0 and b < len(ends) and ends[b] - ends[a] <= WINDOW
        ]
        if not wider:
            return text[ends[first] : ends[last]].strip()
        _, first, last = min(wider)


def _documents(path: Path) -> dict[str, str]:
    """Texts by id, without their titles."""
    found = {}
    for place, values in table_rows(path):
        cells = Cells(place, values)
        found[str(cells.value("_id"))] = cells.text("text")
    return found


CORPUS_FORMATS: Mapping[str, Callable[[DataTable], list[TrainingRow]]] = {
    "answer_windows": answer_windows,
    "answers": answers,
    "beir": beir,
    "tevatron_ids": tevatron_ids,
}


def texts_by_id(path: Path, where: Where | None = None) -> dict[str, str]:
    """ "title text" by id, of the rows that `where` selects."""
    found: dict[str, str] = {}
    for place, values in table_rows(path):
        cells = Cells(place, values)
        if where and not cells.selected(where):
            continue
        key = next((name for name in IDS if cells.has(name)), None)
        if key is None:
            raise DataError(f"{place}: no id column: {', '.join(IDS)}")
        id, title = str(cells.value(key)), values.get("title")
        if id in found:
            raise DataError(f"{place}: duplicate id {id!r}")
        text = cells.value("text")
        if not isinstance(text, str):
            raise DataError(f"{place}: 'text' is {type(text).__name__}, not a string")
        found[id] = f"{title} {text}".strip() if isinstance(title, str) and title else text
    return found


def _judgements(root: Path, names: Mapping[str, str]) -> Iterator[tuple[str, str, float, str]]:
    """(query, document, grade, place) of the qrels, or of two columns of ids that match."""
    if "pairs" in names:
        path = find_file(root, names["pairs"])
        for number, query, document in read_id_pairs(path):
            yield query, document, 1.0, f"{path}:{number}"
        return
    path = find_file(root, names["qrels"])
    for line in read_qrels(path):
        yield line.query, line.document, line.grade, f"{path}:{line.line}"


def _text(texts: Mapping[str, str], id: str, place: str) -> str:
    if id not in texts:
        raise DataError(f"{place}: id {id!r} is not among the {len(texts)} texts of the file")
    return texts[id]


def _exists(path: Path) -> bool:
    return path.is_file() or path.with_name(f"{path.name}.gz").is_file()
