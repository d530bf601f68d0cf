"""Documents in an index as chunks: a row each, which names its document and its characters."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from polyvec.data.chunking import Chunker
from polyvec.data.texts import Record
from polyvec.index.engines.interface import Engine

STALE = 64  # chunks that are looked for at a time


def chunk_records(documents: Iterable[Record], chunker: Chunker) -> Iterator[Record]:
    """A record for each chunk, "ID#0", "ID#1", ...

    Beside the document's metadata it has `document`, `start` and `end`, and `header` if there is
    one: the model reads it before the chunk.
    """
    for document in documents:
        for chunk in chunker.chunks(document):
            place: dict[str, Any] = {
                "document": chunk.document,
                "start": chunk.start,
                "end": chunk.end,
            }
            if chunk.header:
                place["header"] = chunk.header
            yield Record(chunk.id, chunk.text, {**document.metadata, **place})


def chunks_from(engine: Engine, document: str, first: int = 0) -> list[str]:
    """Ids of the document's chunks in an index, from number `first`.

    What a document that has become shorter leaves behind.
    """
    found: list[str] = []
    while True:
        start = first + len(found)
        asked = [f"{document}#{number}" for number in range(start, start + STALE)]
        here: Sequence[str] = engine.get(asked).ids
        found += here
        if len(here) < STALE:
            return found
