"""Chunks whose vectors are pooled from their document's states: late chunking in an index."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from polyvec.data.chunking import is_late
from polyvec.data.texts import Record
from polyvec.embed.late_chunking import check_late_chunking, late_chunk_vectors
from polyvec.errors import InputError
from polyvec.index.adding import Writes
from polyvec.index.engines.interface import Engine, Rows
from polyvec.index.records import BuildReport, grown
from polyvec.interfaces import DenseVectors, EncodeReport, PromptChoice, TextEncoder

GROUP = 64  # documents that are compared with the index, and read by the model, at a time


def add_late(
    engine: Engine,
    chunks: Sequence[Record],
    documents: Mapping[str, str],
    embedder: TextEncoder,
    choice: PromptChoice,
) -> BuildReport:
    """Store chunks (`chunk_records`) with vectors of `late_chunk_vectors`.

    documents: the whole texts, by the `document` of the chunks' metadata. A chunk's vector depends
    on all of its document, so the chunks of a document are embedded and written together, unless
    the index has all of them as they are, and no more. Raises InputError or ModelError for a model
    that is not pooled from a stretch of states, a chunk that is not of its document, or an index
    of other chunks.
    """
    description = engine.description
    if not is_late(description.chunking):
        raise InputError(
            f"late: an index of other texts (chunking {description.chunking!r}), which would take "
            "the vectors for those of the chunks alone; create one with chunking='late by=...'"
        )
    check_late_chunking(embedder)
    _check_chunks(chunks, documents)
    fields = grown(description.fields, chunks)
    num_embedded = 0
    with engine.writing():
        if fields != description.fields:
            engine.describe(replace(description, fields=fields))
        writes = Writes(engine)
        for group in _groups(chunks):
            changed = _changed(engine, group)
            ranges = [
                [(int(c.metadata["start"]), int(c.metadata["end"])) for c in own]
                for own in changed.values()
            ]
            whole = [documents[name] for name in changed]
            vectors = late_chunk_vectors(embedder, whole, ranges, **choice)  # type: ignore[arg-type]
            for own, vectors_CE in zip(changed.values(), vectors, strict=True):
                num_embedded += len(own)
                writes.add(
                    Rows(
                        [each.id for each in own],
                        [each.text for each in own],
                        [dict(each.metadata) for each in own],
                        {"dense": DenseVectors(np.asarray(vectors_CE, np.float32))},
                    )
                )
        writes.flush()
    return BuildReport(len(chunks), num_embedded, EncodeReport(), num_written=writes.num_written)


def _check_chunks(chunks: Sequence[Record], documents: Mapping[str, str]) -> None:
    for each in chunks:
        name, start, end = (each.metadata.get(key) for key in ("document", "start", "end"))
        text = documents.get(name) if isinstance(name, str) else None
        if text is None:
            raise InputError(
                f"late: the chunk {each.id!r} is of document {name!r}, whose text is not given"
            )
        if not isinstance(start, int) or not isinstance(end, int) or text[start:end] != each.text:
            raise InputError(
                f"late: the chunk {each.id!r} is not [{start}:{end}] of document {name!r}"
            )
        if each.metadata.get("header"):
            raise InputError(
                f"late: the chunk {each.id!r} has a header, which is no part of its document; "
                "leave out header="
            )


def _groups(chunks: Sequence[Record]) -> Iterator[dict[str, list[Record]]]:
    """The chunks by document, so many documents at a time."""
    of_document: dict[str, list[Record]] = {}
    for each in chunks:
        of_document.setdefault(str(each.metadata["document"]), []).append(each)
    names = iter(of_document)
    while group := {name: of_document[name] for name in itertools.islice(names, GROUP)}:
        yield group


def _changed(engine: Engine, group: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """The documents of which the index has other chunks."""
    # Of a document that has become shorter, the chunk behind the last one is there.
    behind = {name: f"{name}#{len(own)}" for name, own in group.items()}
    rows = engine.get([*(each.id for own in group.values() for each in own), *behind.values()])
    stored = dict(zip(rows.ids, zip(rows.texts, rows.metadata, strict=True), strict=True))
    return {
        name: own
        for name, own in group.items()
        if behind[name] in stored
        or any(stored.get(each.id) != (each.text, dict(each.metadata)) for each in own)
    }
