"""From rows to a task's data: a reader for each kind of task that is a file of rows.

Those of ranked tasks are in retrieval.py.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from polyvec.data.tasks.qrels import read_id_pairs
from polyvec.data.tasks.sets import (
    BitextMiningSet,
    ClassificationSet,
    ClusteringSet,
    ConditionalStsSet,
    PairClassificationSet,
    StsSet,
    SummarizationSet,
)
from polyvec.data.tasks.source import Row, TaskFiles
from polyvec.errors import DataError

# What experts judge of a summary; its score is the mean, as in MTEB.
ASPECTS = ("coherence", "consistency", "fluency", "relevance")


def sts(files: TaskFiles) -> StsSet:
    """Rows of sentence1, sentence2 and score."""
    rows = files.rows()
    found = StsSet(
        files.name,
        files.split,
        sentences1=_texts(rows, "sentence1"),
        sentences2=_texts(rows, "sentence2"),
        scores=tuple(row.number_of("score") for row in rows),
        sha256=files.sha256(),
    )
    if len(rows) < 2:
        raise DataError(f"{rows[0].path}: 1 pair, but a correlation needs 2 or more")
    return found


def conditional_sts(files: TaskFiles) -> ConditionalStsSet:
    """Rows of sentence1, sentence2, condition and score."""
    rows = files.rows()
    return ConditionalStsSet(
        files.name,
        files.split,
        sentences1=_texts(rows, "sentence1"),
        sentences2=_texts(rows, "sentence2"),
        conditions=_texts(rows, "condition"),
        scores=tuple(row.number_of("score") for row in rows),
        sha256=files.sha256(),
    )


def pair_classification(files: TaskFiles) -> PairClassificationSet:
    """Rows of sentence1, sentence2 and a label, 0 or 1."""
    rows = files.rows()
    labels = []
    for row in rows:
        label = files.label(row)
        if label not in ("0", "1"):
            raise DataError(f"{row.where}: label {label!r} of a pair is not 0 or 1")
        labels.append(int(label))
    return PairClassificationSet(
        files.name,
        files.split,
        sentences1=_texts(rows, "sentence1"),
        sentences2=_texts(rows, "sentence2"),
        labels=tuple(labels),
        sha256=files.sha256(),
    )


def classification(files: TaskFiles) -> ClassificationSet:
    """Rows of text and label, to train on and to score."""
    source = files.source
    train, test = files.rows(source.train), files.rows()
    return ClassificationSet(
        files.name,
        files.split,
        train_texts=_texts(train, "text"),
        train_labels=tuple(files.label(row) for row in train),
        texts=_texts(test, "text"),
        labels=tuple(files.label(row) for row in test),
        samples_per_label=source.samples_per_label,
        sha256=files.sha256((*source.train, *source.files)),
    )


def clustering(files: TaskFiles) -> ClusteringSet:
    """Rows of text and label."""
    rows, source = files.rows(), files.source
    parts = _parts(len(rows), source.num_parts) if source.protocol == "sets" else ()
    return ClusteringSet(
        files.name,
        files.split,
        texts=_texts(rows, "text"),
        labels=tuple(files.label(row) for row in rows),
        protocol=source.protocol,
        parts=parts,
        max_texts=source.max_texts,
        fraction=source.fraction,
        sha256=files.sha256(),
    )


def bitext_mining(files: TaskFiles) -> BitextMiningSet:
    """Rows of sentence1 and its translation sentence2; or with `qrels` as BUCC's files."""
    if files.source.qrels:
        return _bucc(files)
    rows = files.rows()
    return BitextMiningSet(
        files.name,
        files.split,
        sentences1=_texts(rows, "sentence1"),
        sentences2=_texts(rows, "sentence2"),
        gold=tuple((i, i) for i in range(len(rows))),
        sha256=files.sha256(),
    )


def _bucc(files: TaskFiles) -> BitextMiningSet:
    """Two files of sentences with ids, and a file of the gold pairs among them."""
    source = files.source
    first, second = (files.rows((file,)) for file in source.files)
    row_of = [_row_of(rows) for rows in (first, second)]
    path = files.path(source.qrels)
    gold = []
    for number, *ids in read_id_pairs(path):
        for name, known_ids in zip(ids, row_of, strict=True):
            if name not in known_ids:
                raise DataError(f"{path}:{number}: {name!r} is not the id of a sentence")
        gold.append((row_of[0][ids[0]], row_of[1][ids[1]]))
    return BitextMiningSet(
        files.name,
        files.split,
        sentences1=_texts(first, "text"),
        sentences2=_texts(second, "text"),
        gold=tuple(gold),
        sha256=files.sha256((*source.files, source.qrels)),
    )


def summarization(files: TaskFiles) -> SummarizationSet:
    """Rows of text, human_summaries, machine_summaries and scores."""
    rows = files.rows()
    machine, scores = zip(*(_judged(row) for row in rows), strict=True)
    return SummarizationSet(
        files.name,
        files.split,
        texts=_texts(rows, "text"),
        human=tuple(_summaries(row, "human_summaries") for row in rows),
        machine=machine,
        scores=scores,
        sha256=files.sha256(),
    )


def _judged(row: Row) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Machine summaries and scores: plain lists, or a list of tables with the experts' scores."""
    machine = row.value("machine_summaries")
    if isinstance(machine, list) and machine and all(isinstance(each, dict) for each in machine):
        tables = [dataclasses.replace(row, values=each, fields={}) for each in machine]
        texts = tuple(each.text("summary") for each in tables)
        return texts, tuple(
            sum(each.number_of(aspect) for aspect in ASPECTS) / len(ASPECTS) for each in tables
        )
    scores, texts = row.value("scores"), _summaries(row, "machine_summaries")
    if not isinstance(scores, list) or len(scores) != len(texts):
        raise DataError(f"{row.where}: 'scores' must be a list with one score a machine summary")
    numbers = [dataclasses.replace(row, values={"score": each}, fields={}) for each in scores]
    return texts, tuple(each.number_of("score") for each in numbers)


def _summaries(row: Row, field: str) -> tuple[str, ...]:
    """At least one, so that a text without any is known before texts are embedded."""
    found = row.strings(field)
    if not found:
        raise DataError(f"{row.where}: {field!r} is an empty list")
    return found


def _texts(rows: Sequence[Row], field: str) -> tuple[str, ...]:
    return tuple(row.text(field) for row in rows)


def _row_of(rows: Sequence[Row]) -> dict[str, int]:
    """Place of each row by its id."""
    found: dict[str, int] = {}
    for place, row in enumerate(rows):
        first = found.setdefault(row.text("id"), place)
        if first != place:
            raise DataError(
                f"{row.path}: duplicate id {row.text('id')!r} "
                f"(lines {rows[first].number} and {row.number})"
            )
    return found


def _parts(num_rows: int, num_parts: int) -> tuple[tuple[int, ...], ...]:
    """Rows of consecutive parts of nearly equal size, the first ones a row larger."""
    size, more = divmod(num_rows, num_parts)
    ends = [i * size + min(i, more) for i in range(num_parts + 1)]
    return tuple(tuple(range(a, b)) for a, b in itertools.pairwise(ends))
