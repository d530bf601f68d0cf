"""Nearest texts by an embedder or by shared words, over train's mining search.

N texts, E numbers a vector, Q queries.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from polyvec.interfaces import RunOptions, TextEncoder
from polyvec.train.mining.candidates import CANDIDATES, Found
from polyvec.train.mining.candidates import Tools as SearchTools
from polyvec.train.mining.documents import Text

By = Literal["embedder", "bm25"]
BLOCK = 512


def search(
    queries: Sequence[tuple[str, str | None]],
    documents: Sequence[str],
    k: int,
    by: By,
    embedder: TextEncoder | None,
    wanted: Sequence[Sequence[int]] | None = None,
) -> Found:
    """The k nearest documents of each (query, instruction), and its scores with those `wanted`."""
    tools = SearchTools(embedder, None, RunOptions(truncate="silent", show_progress_bar=False))
    made = CANDIDATES[by]([Text(each) for each in documents], tools)
    asked = [Text(text, instruction, "query") for text, instruction in queries]
    return made.find(asked, min(k, len(documents)), wanted or [[] for _ in asked])


def first_near(texts: Sequence[str], embedder: TextEncoder, similarity: float) -> list[int | None]:
    """For each text, the first earlier and kept one whose cosine is at least this; else None."""
    chunks = list(embedder.encode_iter(texts, options=RunOptions(truncate="silent")))
    vectors_NE = np.concatenate(chunks).astype(np.float32)
    vectors_NE /= np.maximum(np.linalg.norm(vectors_NE, axis=1, keepdims=True), 1e-12)
    found: list[int | None] = []
    kept: list[int] = []
    for row, vector_E in enumerate(vectors_NE):
        near = np.flatnonzero(vectors_NE[kept] @ vector_E >= similarity)
        found.append(kept[int(near[0])] if len(near) else None)
        if not len(near):
            kept.append(row)
    return found
