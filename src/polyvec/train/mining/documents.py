"""What is searched: the distinct queries and documents of a data set, and what is known of pairs.

N documents, Q queries.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from polyvec.data.texts import find_file, read_texts
from polyvec.data.training.corpora import texts_by_id
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet
from polyvec.data.words import normalized
from polyvec.errors import DataError


@dataclass(frozen=True, slots=True)
class Text:
    """A text as it is read: its side and the data's own instruction, if it has one."""

    text: str
    instruction: str | None = None
    role: str = "document"


@dataclass(slots=True)
class Searched:
    """The distinct queries and documents of a data set.

    positives, negatives: of each query, as rows of `documents`; negatives are the data's own.
    excluded: of each query, groups that hold no negative of it.
    group_N: documents with equal texts, but for case, punctuation and spaces, are a group.
    class_N, class_Q: the class of each document and query, where the data have classes; else -1.
    """

    name: str
    queries: list[Text] = field(default_factory=list)
    documents: list[Text] = field(default_factory=list)
    positives: list[list[int]] = field(default_factory=list)
    negatives: list[list[int]] = field(default_factory=list)
    excluded: list[np.ndarray] = field(default_factory=list)
    group_N: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    class_N: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    class_Q: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    query_of: dict[tuple[str, str | None], int] = field(default_factory=dict)
    row_of: dict[str, int] = field(default_factory=dict)

    def num_excluded(self) -> np.ndarray:
        """Documents that are known not to be negatives, for each query, [Q]."""
        sizes = np.bincount(self.group_N, minlength=1)
        found = np.array([sizes[groups].sum() for groups in self.excluded], np.int64)
        if len(self.class_N) and self.class_N.max() >= 0:
            of_class = np.bincount(self.class_N[self.class_N >= 0])
            known = (self.class_Q >= 0) & (self.class_Q < len(of_class))
            found[known] = np.maximum(found[known], of_class[self.class_Q[known]])
        return found

    def may_be_negative(
        self, query: int, rows_K: np.ndarray, hidden: np.ndarray | None = None
    ) -> np.ndarray:
        """Which of the documents, best first, nothing speaks against: bool [K].

        Refused are what is missing (-1), known positives, the query's own text, other documents of
        its class, and repeated texts; the best of these stays. `hidden`: groups that are treated as
        if nothing were known of them.
        """
        known = self.excluded[query]
        if hidden is not None:
            known = np.setdiff1d(known, hidden)
        there_K = rows_K >= 0
        groups_K = np.where(there_K, self.group_N[rows_K], -1)
        allowed_K = there_K & ~np.isin(groups_K, known)
        if self.class_Q[query] >= 0:
            allowed_K &= self.class_N[rows_K] != self.class_Q[query]
        first = np.zeros(len(rows_K), bool)
        first[np.unique(groups_K, return_index=True)[1]] = True
        return allowed_K & first


def searched(
    found: TrainingSet, corpus: Iterable[str] = (), *, keep_negatives: bool = True
) -> Searched:
    """The queries of the rows, and their documents with those of the corpus behind them.

    Rows with the same query and instruction are one query with all their positives.
    Raises DataError for a row without a positive, or whose score or label says that the document
    beside the query need not be one.
    """
    made = Searched(found.name or "the data")
    has_classes = found.table.format == "classes"
    classes: dict[str, int] = {}
    for row in found.rows:
        _check(row, has_classes)
        key = (row.query, row.instruction)
        query = made.query_of.setdefault(key, len(made.queries))
        if query == len(made.queries):
            made.queries.append(Text(row.query, row.instruction, "query"))
            made.positives.append([])
            made.negatives.append([])
        places = [_document(made, side) for side in _sides(row, row.positives)]
        _extend(made.positives[query], places)
        if has_classes and row.label is not None:
            classes.update(dict.fromkeys((row.query, *row.positives), row.label))
        own = [_document(made, side) for side in _sides(row, row.negatives)]
        if keep_negatives:
            _extend(made.negatives[query], own)
    first = made.documents[0]
    for text in corpus:
        _document(made, Text(text, first.instruction, first.role))
    _exclude(made)
    made.class_N = np.array([classes.get(each.text, -1) for each in made.documents], np.int64)
    made.class_Q = np.array([classes.get(each.text, -1) for each in made.queries], np.int64)
    return made


def corpus_texts(path: str | Path) -> list[str]:
    """The texts of a corpus: corpus.jsonl of a folder, or a file of any kind.

    Titles are put before texts, as for documents of training data. Raises DataError if it is
    missing or empty.
    """
    path = Path(path)
    if path.is_dir():
        return list(texts_by_id(find_file(path, "corpus.jsonl")).values())
    try:
        found = [record.text for record in read_texts(path) if record.text.strip()]
    except DataError as error:  # mining has no argument for a column
        hint = str(error).replace("name it with column=", "rename the one that has the texts")
        raise DataError(hint) from None
    if not found:
        raise DataError(f"{path}: the corpus has no texts")
    return found


def _document(made: Searched, side: Text) -> int:
    """The document's row; an equal text is the same document."""
    row = made.row_of.setdefault(side.text, len(made.documents))
    if row == len(made.documents):
        made.documents.append(side)
    return row


def _sides(row: TrainingRow, texts: Sequence[str]) -> Iterable[Text]:
    role = "query" if row.symmetric else "document"
    instruction = row.instruction if row.symmetric else row.document_instruction
    return (Text(text, instruction, role) for text in texts)


def _extend(places: list[int], more: Iterable[int]) -> None:
    places.extend(place for place in dict.fromkeys(more) if place not in places)


def _check(row: TrainingRow, has_classes: bool) -> None:
    where = row.place or repr(row.query[:60])
    if not row.positives:
        raise DataError(f"{where}: no positive, which mining needs beside each query")
    if row.score is not None:
        raise DataError(
            f"{where}: a pair with a score of {row.score:g} need not match; set min_score, from "
            "which on pairs are positives"
        )
    if row.label is not None and not has_classes:
        raise DataError(
            f"{where}: a pair with label {row.label} need not match; select the pairs that do with "
            "where = {label = ...}, or read them as format 'judged' or 'nli_triplets'"
        )


def _exclude(made: Searched) -> None:
    """Groups of documents, and those that hold no negative of each query."""
    groups: dict[str, int] = {}
    made.group_N = np.array(
        [groups.setdefault(normalized(each.text), len(groups)) for each in made.documents], np.int64
    )
    known: dict[tuple[str, str | None], set[int]] = {}
    keys = [(normalized(each.text), each.instruction) for each in made.queries]
    for query, key in enumerate(keys):
        places = made.positives[query] + made.negatives[query]
        known.setdefault(key, set()).update(made.group_N[places].tolist())
    made.excluded = [_groups(known[key], groups.get(key[0])) for key in keys]


def _groups(known: set[int], own: int | None) -> np.ndarray:
    return np.array(sorted(known | ({own} if own is not None else set())), np.int64)


def own_corpus(found: TrainingSet) -> list[str]:
    """All texts of the corpus that a data set names its documents in; none if it has no ids."""
    path, corpus = found.table.path, found.table.corpus
    if corpus:
        return corpus_texts(corpus)
    if path and (Path(path) / "qrels").is_dir():
        name = str(found.table.columns.get("corpus", "corpus.jsonl"))
        return list(texts_by_id(find_file(Path(path), name)).values())
    return []
