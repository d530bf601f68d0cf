"""Data sets as folders: sentence pairs with a score, and BEIR-style retrieval."""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

from polyvec.data.texts import find_file, open_text, read_jsonl
from polyvec.errors import DataError


@dataclass(frozen=True, slots=True)
class StsSet:
    """Pairs of sentences and their gold similarity: `<split>.jsonl[.gz]`."""

    name: str
    split: str
    sentences1: tuple[str, ...]
    sentences2: tuple[str, ...]
    scores: tuple[float, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Corpus, queries and graded relevance: corpus.jsonl, queries.jsonl, qrels/<split>.tsv.

    `corpus` maps ids to "title text", `queries` holds those that the split judges.
    """

    name: str
    split: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] = field(repr=False)
    sha256: str = ""


def read_set(folder: str | Path, split: str = "test") -> StsSet | RetrievalSet:
    """The data set in a folder; its kind is told by its files.

    Raises DataError naming file, line and id for what is missing or does not fit.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    if (path / "qrels").is_dir():
        return _retrieval(path, split)
    return _sts(path, split)


def _sts(folder: Path, split: str) -> StsSet:
    try:
        path = find_file(folder, f"{split}.jsonl")
    except DataError:
        splits = sorted({p.name.split(".jsonl")[0] for p in folder.glob("*.jsonl*")})
        raise DataError(
            f"{folder}: no split {split!r}. Known: {', '.join(splits) or 'none'}."
        ) from None
    left, right, scores = [], [], []
    for number, row in read_jsonl(path):
        left.append(_string(path, number, row, "sentence1"))
        right.append(_string(path, number, row, "sentence2"))
        scores.append(_number(path, number, row, "score"))
    if len(scores) < 2:
        raise DataError(f"{path}: {len(scores)} pairs, a correlation needs 2")
    return StsSet(folder.name, split, tuple(left), tuple(right), tuple(scores), _sha256(path))


def _retrieval(folder: Path, split: str) -> RetrievalSet:
    corpus_path, queries_path = (
        find_file(folder, "corpus.jsonl"),
        find_file(folder, "queries.jsonl"),
    )
    try:
        qrels_path = find_file(folder / "qrels", f"{split}.tsv")
    except DataError:
        splits = sorted({p.name.split(".tsv")[0] for p in (folder / "qrels").glob("*.tsv*")})
        raise DataError(
            f"{folder}: no split {split!r}. Known: {', '.join(splits) or 'none'}."
        ) from None
    corpus = _texts(corpus_path, titled=True)
    queries = _texts(queries_path)
    qrels = _qrels(qrels_path, corpus, queries)
    judged = {query: queries[query] for query in qrels}
    for query, text in judged.items():
        if not text.strip():
            raise DataError(f"{queries_path}: query {query!r} is empty")
    digest = _sha256(corpus_path, queries_path, qrels_path)
    return RetrievalSet(folder.name, split, corpus, judged, qrels, digest)


def _texts(path: Path, *, titled: bool = False) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, row in read_jsonl(path):
        key = str(row.get("_id", ""))
        if not key:
            raise DataError(f"{path}:{number}: no _id")
        if key in texts:
            raise DataError(f"{path}:{number}: the id {key!r} stands there twice")
        text = _string(path, number, row, "text")
        title = row.get("title") or ""
        texts[key] = f"{title} {text}".strip() if titled else text
    return texts


def _qrels(path: Path, corpus: dict, queries: dict) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            cells = line.rstrip("\r\n").split("\t")
            if number == 1 and cells[0] in ("query-id", "query_id", "qid"):
                continue
            if len(cells) != 3:
                raise DataError(
                    f"{path}:{number}: {len(cells)} columns, not query, document, score"
                )
            query, document, score = cells
            if query not in queries:
                raise DataError(f"{path}:{number}: query {query!r} is not in queries.jsonl")
            if document not in corpus:
                raise DataError(f"{path}:{number}: document {document!r} is not in corpus.jsonl")
            qrels.setdefault(query, {})[document] = _grade(path, number, score)
    if not qrels:
        raise DataError(f"{path}: no judgements")
    return qrels


def _grade(path: Path, number: int, score: str) -> int:
    try:
        return int(float(score))
    except ValueError:
        raise DataError(f"{path}:{number}: score {score!r} is not a number") from None


def _string(path: Path, number: int, row: dict, key: str) -> str:
    if not isinstance(row.get(key), str):
        raise DataError(f"{path}:{number}: {key!r} is {row.get(key)!r}, not a string")
    return row[key]


def _number(path: Path, number: int, row: dict, key: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{path}:{number}: {key!r} is {value!r}, not a finite number")
    return float(value)


def _sha256(*paths: Path) -> str:
    """Hash of the files' names and bytes: two copies of one data set are told apart."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
