"""Data sets as folders: sentence pairs with a score, and BEIR-style retrieval."""

import hashlib
import math
import sys
from pathlib import Path

from polyvec.data.tasks.sets import RetrievalSet, StsSet
from polyvec.data.texts import find_file, read_jsonl, read_lines
from polyvec.errors import DataError, known


def read_set(folder: str | Path, split: str = "test") -> StsSet | RetrievalSet:
    """The data set in a folder; its kind is told by its files.

    Raises DataError naming file, line and id for what is missing or does not fit.
    """
    path = Path(folder).resolve()  # "." has a name too
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    if (path / "qrels").is_dir():
        return _retrieval(path, split)
    return _sts(path, split)


def _sts(folder: Path, split: str) -> StsSet:
    path = split_file(folder, folder, split, "jsonl")
    left, right, scores = [], [], []
    for number, row in read_jsonl(path):
        left.append(_string(path, number, row, "sentence1"))
        right.append(_string(path, number, row, "sentence2"))
        scores.append(number_of(path, number, row, "score"))
    if len(scores) < 2:
        raise DataError(f"{path}: {len(scores)} pairs, a correlation needs 2")
    return StsSet(folder.name, split, tuple(left), tuple(right), tuple(scores), _sha256(path))


def _retrieval(folder: Path, split: str) -> RetrievalSet:
    return read_retrieval(
        find_file(folder, "corpus.jsonl"),
        find_file(folder, "queries.jsonl"),
        split_file(folder, folder / "qrels", split, "tsv"),
        folder.name,
        split,
    )


def read_retrieval(
    corpus_path: Path,
    queries_path: Path,
    qrels_path: Path,
    name: str,
    split: str,
    *,
    titles: bool = True,
) -> RetrievalSet:
    """Corpus, the judged queries and their judgements; documents begin with their titles.

    Raises DataError naming file, line and id: ids that stand there twice, judgements of unknown
    queries or documents, empty queries.
    """
    bodies, heads = _texts(corpus_path)
    queries, _ = _texts(queries_path)
    qrels = _qrels(qrels_path, bodies, queries)
    judged = {query: queries[query] for query in qrels}
    for query, text in judged.items():
        if not text.strip():
            raise DataError(f"{queries_path}: query {query!r} is empty")
    heads = heads if titles else dict.fromkeys(heads, "")
    corpus = {key: f"{heads[key]} {body}".strip() for key, body in bodies.items()}
    identical = {q for q, text in judged.items() if text in (bodies.get(q), corpus.get(q))}
    excluded = _excluded(queries_path, judged, bodies)
    digest = _sha256(corpus_path, queries_path, qrels_path)
    return RetrievalSet(
        name, split, corpus, judged, qrels, digest, frozenset(identical), excluded=excluded
    )


def _excluded(
    path: Path, judged: dict[str, str], corpus: dict[str, str]
) -> dict[str, frozenset[str]]:
    """Documents that a query's row names in "excluded_ids", as BRIGHT does."""
    found: dict[str, frozenset[str]] = {}
    for number, row in read_jsonl(path):
        names = row.get("excluded_ids") or []
        if not isinstance(names, list):
            raise DataError(f"{path}:{number}: 'excluded_ids' is {names!r}, not a list")
        if names and str(row["_id"]) in judged:
            found[str(row["_id"])] = frozenset(str(each) for each in names) & corpus.keys()
    return found


def split_file(folder: Path, place: Path, split: str, kind: str) -> Path:
    """`<split>.<kind>` or its gzipped twin; DataError that names the splits there are."""
    names = {p.name.removesuffix(".gz") for p in place.iterdir()}
    splits = {n.removesuffix(f".{kind}") for n in names if n.endswith(f".{kind}")}
    if not splits:
        raise DataError(f"{place}: no data set there, it holds no <split>.{kind}")
    if split not in splits:
        raise DataError(f"{folder}: no split {split!r}.{known(split, splits)}")
    return find_file(place, f"{split}.{kind}")


def _texts(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Texts and titles by id."""
    texts: dict[str, str] = {}
    titles: dict[str, str] = {}
    for number, row in read_jsonl(path):
        key = row.get("_id")
        if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
            raise DataError(f"{path}:{number}: '_id' is {key!r}, not a string or a whole number")
        key = str(key)
        if key in texts:
            raise DataError(f"{path}:{number}: the id {key!r} stands there twice")
        texts[key] = _string(path, number, row, "text")
        titles[key] = "" if row.get("title") is None else _string(path, number, row, "title")
    return texts, titles


def _qrels(
    path: Path, corpus: dict[str, str], queries: dict[str, str]
) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in read_lines(path):
        cells = line.split("\t")
        if not line.strip() or (number == 1 and cells[0] in ("query-id", "query_id", "qid")):
            continue
        if len(cells) != 3:
            raise DataError(f"{path}:{number}: {len(cells)} columns, not query, document, score")
        query, document, score = cells
        if query not in queries:
            raise DataError(f"{path}:{number}: query {query!r} is not in queries.jsonl")
        if document not in corpus:
            raise DataError(f"{path}:{number}: document {document!r} is not in corpus.jsonl")
        grades, grade = qrels.setdefault(query, {}), _grade(path, number, score)
        if grades.setdefault(document, grade) != grade:
            raise DataError(
                f"{path}:{number}: query {query!r} and document {document!r} "
                f"have the score {grade} here and {grades[document]} above"
            )
    if not qrels:
        raise DataError(f"{path}: no judgements")
    return qrels


def _grade(path: Path, number: int, score: str) -> int:
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not value.is_integer():  # nor are NaN and infinity
        raise DataError(f"{path}:{number}: score {score!r} is not a whole number")
    return int(value)


def _string(path: Path, number: int, row: dict, key: str) -> str:
    if not isinstance(row.get(key), str):
        raise DataError(f"{path}:{number}: {key!r} is {row.get(key)!r}, not a string")
    return row[key]


def number_of(path: Path, number: int, row: dict, key: str) -> float:
    value = row.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # False for NaN too, and for whole numbers of 400 digits.
    if value is None or not is_number or not abs(value) <= sys.float_info.max:
        raise DataError(f"{path}:{number}: {key!r} is {value!r}, not a finite number")
    return float(value)


def _sha256(*paths: Path) -> str:
    """Hash of the files' names and bytes: two copies of one data set are told apart."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
