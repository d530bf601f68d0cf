"""Records become rows of an engine: what is known is not embedded again.

N texts, U distinct texts that are new.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from polyvec.data.texts import Record
from polyvec.errors import DataError, InputError, ModelError
from polyvec.index.engines.checks import form_of, not_finite
from polyvec.index.engines.interface import Description, Engine, Form, Rows
from polyvec.index.records import BuildReport, grown, read_as
from polyvec.interfaces import (
    DenseVectors,
    EncodeReport,
    MultiVectors,
    PromptChoice,
    RunOptions,
    SparseVectors,
    TextEncoder,
    Vectors,
)

CHUNK = 1024  # texts encoded before their rows are stored: the most that a kill can cost


def add(
    engine: Engine,
    items: Sequence[Record],
    embedder: TextEncoder,
    options: RunOptions,
    choice: PromptChoice,
) -> BuildReport:
    """Store the records, in place of those of equal ids.

    A record that is there as it is is not written again, and a text whose vectors are known is
    not embedded again. Up to CHUNK records are one write; the rows of more are stored as their
    vectors come, so that a process that is killed, and run again, goes on.
    Raises DataError for metadata of another kind, and naming the id for a vector with NaN.
    """
    description = engine.description
    fields = grown(description.fields, items)
    with engine.writing():
        if fields != description.fields:
            description = replace(description, fields=fields)
            engine.describe(description)
        waiting: dict[str, list[Record]] = {}
        writes = Writes(engine)
        for chunk in _chunks(items):
            known, unknown = _sorted_out(engine, chunk)
            writes.add(known)
            for item in unknown:
                waiting.setdefault(read_as(item.text, item.metadata), []).append(item)
        report, todo, done = EncodeReport(), list(waiting), 0
        for vectors in _encoded(embedder, todo, options, choice, report, description):
            texts, done = todo[done : done + len(vectors)], done + len(vectors)
            same = [waiting[text] for text in texts]
            _check_finite(vectors, same)
            places = [row for row, each in enumerate(same) for _ in each]
            new = list(itertools.chain.from_iterable(same))
            for start in range(0, len(new), CHUNK):
                part = slice(start, start + CHUNK)
                writes.add(_rows(new[part], picked(vectors, places[part])))
        writes.flush()
    return BuildReport(len(items), len(todo), report, num_written=writes.num_written)


class Writes:
    """Rows on their way to the engine, which get there CHUNK or more at a time.

    A kill between two writes of a small addition would leave a part of it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.num_written = engine, 0
        self._waiting: list[Rows] = []

    def add(self, rows: Rows) -> None:
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        rows, self._waiting = joined_rows(self._waiting), []
        if len(rows):
            self.engine.upsert(rows)
            self.num_written += len(rows)


def add_given(engine: Engine, items: Sequence[Record], vectors: Vectors) -> BuildReport:
    """Store records with vectors that were made elsewhere; InputError for another number."""
    if len(vectors) != len(items):
        raise InputError(f"{len(vectors)} vectors for {len(items)} records; give one each")
    description = engine.description
    fields = grown(description.fields, items)
    with engine.writing():
        if fields != description.fields:
            engine.describe(replace(description, fields=fields))
        for start in range(0, len(items), CHUNK):
            places = range(start, min(start + CHUNK, len(items)))
            engine.upsert(_rows(items[start : start + CHUNK], picked(vectors, places)))
    return BuildReport(len(items), 0, EncodeReport(), num_written=len(items))


def _sorted_out(engine: Engine, items: Sequence[Record]) -> tuple[Rows, list[Record]]:
    """Of the records that are new or changed: rows whose vectors are known, and the others."""
    old = engine.get([item.id for item in items])
    stored = dict(zip(old.ids, zip(old.texts, old.metadata, strict=True), strict=True))
    changed = [item for item in items if stored.get(item.id) != (item.text, dict(item.metadata))]
    # Rows of equal ids first: engines that cannot find texts have at least them.
    same = [each.id for each in changed if each.id in stored and stored[each.id][0] == each.text]
    found = [engine.get(same, vectors=True), engine.find_texts([each.text for each in changed])]
    place_of: dict[str, tuple[int, int]] = {}
    for number, rows in enumerate(found):
        for row, (text, metadata) in enumerate(zip(rows.texts, rows.metadata, strict=True)):
            place_of[read_as(text, metadata)] = number, row
    places = [place_of.get(read_as(each.text, each.metadata)) for each in changed]
    known = [(each, at) for each, at in zip(changed, places, strict=True) if at is not None]
    unknown = [each for each, at in zip(changed, places, strict=True) if at is None]
    parts: list[Rows] = []
    for number, part in enumerate(found):
        here = [(item, row) for item, (which, row) in known if which == number]
        if here:
            vectors = {
                form: picked(each, [row for _, row in here]) for form, each in part.vectors.items()
            }
            parts.append(_rows_of([item for item, _ in here], vectors))
    return joined_rows(parts), unknown


def _rows(items: Sequence[Record], vectors: Vectors) -> Rows:
    return _rows_of(items, {form_of(vectors): vectors})


def _rows_of(items: Sequence[Record], vectors: Mapping[Form, Vectors]) -> Rows:
    metadata = [dict(item.metadata) for item in items]
    return Rows([item.id for item in items], [item.text for item in items], metadata, vectors)


def _encoded(
    embedder: TextEncoder,
    texts: list[str],
    options: RunOptions,
    choice: PromptChoice,
    report: EncodeReport,
    description: Description,
) -> Iterator[Vectors]:
    """Vectors of the texts in chunks, of the index's form and width."""
    name, done = type(embedder).__name__, 0
    (form, dimension), *_ = description.dimensions.items()
    if form == "dense":
        arrays = embedder.encode_iter(
            texts, chunk_size=CHUNK, options=options, report=report, **choice
        )
        for array in arrays:
            shape = np.shape(array)
            if len(shape) != 2 or shape[0] > len(texts) - done or shape[1] != dimension:
                raise ModelError(
                    f"{name}.encode_iter gave an array of shape {shape}, expected at most "
                    f"{len(texts) - done} rows of {dimension} dimensions"
                )
            done += len(array)
            yield DenseVectors(np.asarray(array, np.float32))
    else:
        for start in range(0, len(texts), CHUNK):
            part = texts[start : start + CHUNK]
            vectors, told = embedder.encode_vectors(part, options=options, **choice)
            _add_report(report, told, start)
            done += len(vectors)
            yield vectors
    if done < len(texts):
        raise ModelError(f"{name} gave {done} vectors for {len(texts)} texts")


def _add_report(report: EncodeReport, part: EncodeReport, start: int) -> None:
    report.prompt = part.prompt
    for name in ("num_texts", "num_tokens", "num_computed_tokens", "num_truncated"):
        setattr(report, name, getattr(report, name) + getattr(part, name))
    report.tokenize_s += part.tokenize_s
    report.forward_s += part.forward_s
    report.truncated += [start + index for index in part.truncated]
    if report.first_truncated is None and part.first_truncated:
        index, length = part.first_truncated
        report.first_truncated = start + index, length


def _check_finite(vectors: Vectors, items: Sequence[Sequence[Record]]) -> None:
    """NaN would rank first in every search (faiss#2986); it is refused here, by id."""
    wrong = not_finite(vectors)
    if wrong is not None:
        raise ModelError(
            f"the vector of text {items[wrong][0].id!r} holds NaN or infinity; try dtype "
            "float32, or leave the text out"
        )


def check_known(engine: Engine, items: Sequence[Record]) -> None:
    """Raises DataError for a record whose id is not in the index."""
    for chunk in _chunks(items):
        there = set(engine.get([item.id for item in chunk]).ids)
        for item in chunk:
            if item.id not in there:
                raise DataError(f"no text {item.id!r} to update; add it instead")


def _chunks(items: Sequence[Record]) -> Iterator[Sequence[Record]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def picked(vectors: Vectors, places: Sequence[int]) -> Vectors:
    """The vectors of these texts, in this order."""
    rows = np.asarray(places, np.int64)
    match vectors:
        case DenseVectors(values_NE):
            return DenseVectors(values_NE[rows])
        case MultiVectors():
            return MultiVectors.of([vectors[row] for row in rows.tolist()], vectors.dimension)
        case SparseVectors(indptr, indices_Z, values_Z, dimension):
            lengths = np.diff(indptr)[rows]
            starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            # The place of each number: where its row begins, and how far it is within it.
            at_Z = np.repeat(indptr[:-1][rows] - starts[:-1], lengths) + np.arange(starts[-1])
            return SparseVectors(starts, indices_Z[at_Z], values_Z[at_Z], dimension)


def joined_rows(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts; those without rows may lack vectors."""
    held = [part for part in parts if len(part)]
    forms = held[0].vectors if held else {}
    return Rows(
        [each for part in held for each in part.ids],
        [each for part in held for each in part.texts],
        [each for part in held for each in part.metadata],
        {form: joined([part.vectors[form] for part in held]) for form in forms},
    )


def joined(parts: Sequence[Vectors]) -> Vectors:
    """Vectors of one form, one after another."""
    first = parts[0]
    match first:
        case DenseVectors():
            return DenseVectors(np.concatenate([part.to_dense() for part in parts]))
        case SparseVectors():
            every = [part for part in parts if isinstance(part, SparseVectors)]
            return SparseVectors.joined(every, first.dimension)
        case MultiVectors():
            texts = [
                part[row]
                for part in parts
                if isinstance(part, MultiVectors)
                for row in range(len(part))
            ]
            return MultiVectors.of(texts, first.dimension)
