"""Long documents become chunks, each of which knows its document and its characters there."""

from polyvec.data.chunking.chunker import (
    CHUNKERS,
    HEADERS,
    Chunk,
    Chunker,
    chunks,
    is_late,
    load_chunker,
)

__all__ = ["CHUNKERS", "HEADERS", "Chunk", "Chunker", "chunks", "is_late", "load_chunker"]
