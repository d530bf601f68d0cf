"""Readers of ranked tasks: retrieval, reranking, and both under instructions."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from polyvec.data.tasks.qrels import read_qrels, whole_grade
from polyvec.data.tasks.sets import InstructionRetrievalSet, RetrievalSet
from polyvec.data.tasks.source import TaskFiles, parsed
from polyvec.data.texts import read_jsonl
from polyvec.errors import DataError

Qrels = dict[str, dict[str, int]]


def retrieval(files: TaskFiles) -> RetrievalSet:
    """Corpus, queries and qrels, or rows whose "query" finds its "document"."""
    source = files.source
    if source.files:
        return _pairs(files)
    paths = [files.path(each) for each in (source.corpus, source.queries, source.qrels)]
    corpus_path, queries_path, _ = paths
    texts, titles = _texts(corpus_path)
    queries, _ = _texts(queries_path)
    qrels = _qrels(paths[2], texts, queries)
    judged = {query: queries[query] for query in qrels}
    for query, text in judged.items():
        if not text.strip():
            raise DataError(f"{queries_path}: query {query!r} is empty")
    titles = titles if source.titles else dict.fromkeys(titles, "")
    corpus = {key: f"{titles[key]} {text}".strip() for key, text in texts.items()}
    # The text alone, too: some data sets repeat a document as a query without its title.
    identical = {q for q, text in judged.items() if text in (texts.get(q), corpus.get(q))}
    excluded = _excluded(queries_path, judged, texts)
    if source.only_judged:
        found = {document for grades in qrels.values() for document in grades}
        corpus = {key: text for key, text in corpus.items() if key in found}
    return RetrievalSet(
        files.name,
        files.split,
        corpus=corpus,
        queries=judged,
        qrels=qrels,
        identical=frozenset(identical),
        excluded=excluded,
        sha256=_sha256(files, paths),
    )


def reranking(files: TaskFiles) -> RetrievalSet:
    """Retrieval data in which each query ranks the documents that have a judgement for it."""
    found = retrieval(files)
    candidates = {query: tuple(grades) for query, grades in found.qrels.items()}
    return dataclasses.replace(found, candidates=candidates)


def instruction_retrieval(files: TaskFiles) -> InstructionRetrievalSet:
    """Queries with one row for each instruction, such as "701-og" and "701-changed".

    A row of queries.jsonl has _id, text and instruction, and "query" where the query's own id is
    not the part before "-og" or "-changed". Judgements are by _id.
    """
    whole = retrieval(files)
    rows_of: dict[str, list[tuple[str, str]]] = {}
    path = files.path(files.source.queries)
    for number, values in parsed(path):
        key, instruction = str(values["_id"]), values.get("instruction")
        if key not in whole.queries:
            continue
        if not isinstance(instruction, str):
            raise DataError(f"{path}:{number}: 'instruction' is {instruction!r}, not a string")
        query = str(values.get("query") or key.removesuffix("-og").removesuffix("-changed"))
        rows_of.setdefault(query, []).append((key, instruction))
    ends = [{key.removeprefix(query) for key, _ in rows} for query, rows in rows_of.items()]
    changed = all(each == {"-og", "-changed"} for each in ends)
    if changed:  # the original first: "-og" sorts after "-changed"
        rows_of = {query: sorted(rows, reverse=True) for query, rows in rows_of.items()}
    keys = {query: [key for key, _ in rows] for query, rows in rows_of.items()}
    return InstructionRetrievalSet(
        files.name,
        files.split,
        corpus=whole.corpus,
        queries={query: whole.queries[each[0]] for query, each in keys.items()},
        instructions={query: tuple(words for _, words in rows) for query, rows in rows_of.items()},
        qrels={query: tuple(whole.qrels[key] for key in each) for query, each in keys.items()},
        candidates={q: whole.candidates[k[0]] for q, k in keys.items() if whole.candidates},
        changed=changed,
        sha256=whole.sha256,
    )


def candidates(file: Path, data: RetrievalSet) -> dict[str, tuple[str, ...]]:
    """The documents to rank for each query: rows of "query-id" and "corpus-ids"."""
    found: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for number, row in read_jsonl(file):
        query, documents = str(row.get("query-id")), row.get("corpus-ids")
        if lines.setdefault(query, number) != number:
            raise DataError(
                f"{file}: duplicate query {query!r} (lines {lines[query]} and {number})"
            )
        if not isinstance(documents, list):
            raise DataError(f"{file}:{number}: 'corpus-ids' is {documents!r}, not a list")
        for document in documents:
            if str(document) not in data.corpus:
                raise DataError(f"{file}:{number}: document {document!r} is not in corpus.jsonl")
        found[query] = tuple(str(document) for document in documents)
    for query in data.queries:
        if query not in found:
            raise DataError(f"{file}: no documents to rank for query {query!r}")
    return found


def _pairs(files: TaskFiles) -> RetrievalSet:
    """Each row's "query" is answered by its "document"."""
    corpus: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    id_of: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for place, row in enumerate(files.rows()):
        text, document = row.text("query"), row.text("document")
        if not text.strip():
            raise DataError(f"{row.where}: the query is empty")
        query_id, document_id = f"q{place}", f"d{place}"
        if files.source.merge:
            query_id = id_of[0].setdefault(text, query_id)
            document_id = id_of[1].setdefault(document, document_id)
        corpus[document_id], queries[query_id] = document, text
        qrels.setdefault(query_id, {})[document_id] = 1
    return RetrievalSet(files.name, files.split, corpus, queries, qrels, sha256=files.sha256())


def _texts(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Texts and titles by id."""
    texts: dict[str, str] = {}
    titles: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, row in read_jsonl(path):
        key = row.get("_id")
        if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
            raise DataError(f"{path}:{number}: '_id' is {key!r}, not a string or a whole number")
        key = str(key)
        if key in lines:
            raise DataError(f"{path}: duplicate id {key!r} (lines {lines[key]} and {number})")
        lines[key] = number
        texts[key] = _string(path, number, row, "text")
        titles[key] = "" if row.get("title") is None else _string(path, number, row, "title")
    return texts, titles


def _qrels(path: Path, corpus: dict[str, str], queries: dict[str, str]) -> Qrels:
    qrels: Qrels = {}
    for judgement in read_qrels(path):
        number, query, document, _ = judgement
        if query not in queries:
            raise DataError(f"{path}:{number}: query {query!r} is not in queries.jsonl")
        if document not in corpus:
            raise DataError(f"{path}:{number}: document {document!r} is not in corpus.jsonl")
        grade = whole_grade(path, judgement)
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise DataError(
                f"{path}:{number}: query {query!r} and document {document!r} have grade {grade}, "
                f"but {qrels[query][document]} on an earlier line"
            )
    if not qrels:
        raise DataError(f"{path}: no judgements")
    return qrels


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


def _string(path: Path, number: int, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f"{path}:{number}: {key!r} is {value!r}, not a string")
    return value


def _sha256(files: TaskFiles, paths: list[Path]) -> str:
    """Hash of the files' names and bytes, and of settings that differ from their defaults."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    source = files.source
    if source.titles and not source.only_judged:
        return digest.hexdigest()
    settings = f"{digest.hexdigest()} titles={source.titles} only_judged={source.only_judged}"
    return hashlib.sha256(settings.encode()).hexdigest()
