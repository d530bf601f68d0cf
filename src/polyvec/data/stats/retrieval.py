"""Queries, passages and judgements of BEIR-style folders, and which of them are missing.

Ids are stored as 64-bit hashes, so that millions of them fit into memory.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from polyvec.data.stats.files import DataFile, read_rows
from polyvec.data.tasks.qrels import read_qrels
from polyvec.data.texts import ID_COLUMNS
from polyvec.data.words import hash64


@dataclass(frozen=True, slots=True)
class RetrievalStats:
    """One qrels file with the corpus and the queries that match it best.

    `per_query` is the minimum, mean and maximum number of judgements of a judged query;
    `num_unjudged` queries have none in this file, and `num_without_positive` judged queries have
    none above 0. `grades` counts the judgements of each grade. `first_missing` is file:line of
    the first judgement whose query or document does not exist.
    """

    qrels: str
    corpus: str
    queries: str
    num_queries: int
    num_passages: int
    num_judgements: int
    num_judged: int
    num_unjudged: int
    num_without_positive: int
    per_query: tuple[int, float, int]
    grades: Mapping[str, int]
    num_judged_passages: int
    num_missing_passages: int
    num_missing_queries: int
    num_repeated_ids: int
    first_missing: str | None = None


def retrieval_stats(files: Sequence[DataFile]) -> Iterator[RetrievalStats]:
    """Statistics of each qrels file in a folder that has a corpus and queries."""
    folders: dict[str, list[DataFile]] = {}
    for file in files:
        folders.setdefault(_folder(file), []).append(file)
    for inside in folders.values():
        corpora = {v: _ids(file) for v, file in _variants(inside, "corpus").items()}
        queries = {v: _ids(file) for v, file in _variants(inside, "queries").items()}
        if not corpora or not queries:
            continue
        for file in inside:
            if file.is_qrels:
                judged = _Judgements(file)
                for corpus, asked in _fitting(judged, corpora, queries):
                    yield _figures(judged, corpus, asked)


def _folder(file: DataFile) -> str:
    """The folder of the file's corpus: its own, or the parent of qrels/."""
    place = PurePosixPath(file.name).parent
    return str(place.parent if place.name == "qrels" else place)


def _variants(files: Sequence[DataFile], kind: str) -> dict[str, DataFile]:
    """Files such as corpus.jsonl and corpus.de.jsonl, by the rest of their names."""
    found = {}
    for file in files:
        first, *rest = re.split(r"[._-]", file.stem)
        if first == kind and not file.is_qrels:
            found[" ".join(rest)] = file
    return found


class _Ids:
    """The ids of a file's rows as sorted hashes, and the number of duplicates."""

    def __init__(self, name: str, hashes: np.ndarray) -> None:
        self.name, self.num_rows = name, len(hashes)
        self.hashes = np.unique(hashes)
        self.num_repeated = self.num_rows - len(self.hashes)


def _ids(file: DataFile) -> _Ids:
    hashes = array("Q")
    for number, row in read_rows(file):
        key = next((row[name] for name in ID_COLUMNS if row.get(name) is not None), number)
        hashes.append(hash64(str(key)))
    return _Ids(file.name, np.asarray(hashes))


class _Judgements:
    """Queries, documents and grades of a qrels file, as parallel arrays."""

    def __init__(self, file: DataFile) -> None:
        self.file = file
        lines, queries, documents, grades = array("Q"), array("Q"), array("Q"), array("d")
        for number, query, document, grade in read_qrels(file.path):
            lines.append(number)
            queries.append(hash64(query))
            documents.append(hash64(document))
            grades.append(grade)
        self.lines, self.grades = np.asarray(lines), np.asarray(grades)
        self.queries, self.documents = np.asarray(queries), np.asarray(documents)

    def num_found(self, corpus: _Ids, queries: _Ids) -> int:
        """Number of judgements whose query and document both exist."""
        known = np.isin(self.queries, queries.hashes) & np.isin(self.documents, corpus.hashes)
        return int(known.sum())


def _fitting(
    judged: _Judgements, corpora: Mapping[str, _Ids], queries: Mapping[str, _Ids]
) -> list[tuple[_Ids, _Ids]]:
    """The corpora and queries of a qrels file, chosen by name, then by id.

    "qrels.dev" matches corpus.dev, or the only corpus; "de-en" matches corpus.de and queries.en,
    or corpus.en and queries.de, whichever has more of the ids; "qrels" alone matches every corpus
    with the queries of the same name.
    """
    named = set(re.split(r"[._-]", judged.file.stem))
    mine, asked = _named(corpora, named), _named(queries, named)
    if len(mine) == 2 and set(mine) == set(asked) and set(mine) <= named:
        a, b = mine
        crossed = [(corpora[a], queries[b]), (corpora[b], queries[a])]
        return [max(crossed, key=lambda pair: judged.num_found(*pair))]
    if both := [variant for variant in mine if variant in asked]:
        return [(mine[variant], asked[variant]) for variant in both]
    return [(_merged(mine), _merged(asked))]


def _named(found: Mapping[str, _Ids], names: set[str]) -> Mapping[str, _Ids]:
    """The files whose variant is among the names, or all files."""
    return {v: ids for v, ids in found.items() if v and set(v.split()) <= names} or found


def _merged(found: Mapping[str, _Ids]) -> _Ids:
    parts = list(found.values())
    if len(parts) == 1:
        return parts[0]
    name = ", ".join(part.name for part in parts)
    return _Ids(name, np.concatenate([part.hashes for part in parts]))


def _figures(judged: _Judgements, corpus: _Ids, queries: _Ids) -> RetrievalStats:
    query, counts = np.unique(judged.queries, return_counts=True)
    documents = np.unique(judged.documents)
    positive = np.unique(judged.queries[judged.grades > 0])
    no_query = ~np.isin(judged.queries, queries.hashes)
    no_document = ~np.isin(judged.documents, corpus.hashes)
    lost = np.flatnonzero(no_query | no_document)
    grades = Counter(f"{grade:g}" for grade in judged.grades.tolist())
    spread = (int(counts.min()), float(counts.mean()), int(counts.max())) if len(counts) else None
    return RetrievalStats(
        judged.file.name,
        corpus.name,
        queries.name,
        num_queries=queries.num_rows,
        num_passages=corpus.num_rows,
        num_judgements=len(judged.grades),
        num_judged=len(query),
        num_unjudged=int((~np.isin(queries.hashes, query)).sum()),
        num_without_positive=len(query) - len(positive),
        per_query=spread or (0, 0.0, 0),
        grades=dict(sorted(grades.items(), key=lambda item: float(item[0]))),
        num_judged_passages=len(documents),
        num_missing_passages=int((~np.isin(documents, corpus.hashes)).sum()),
        num_missing_queries=int((~np.isin(query, queries.hashes)).sum()),
        num_repeated_ids=corpus.num_repeated + queries.num_repeated,
        first_missing=f"{judged.file.name}:{judged.lines[lost[0]]}" if len(lost) else None,
    )
