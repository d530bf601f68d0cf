"""Demonstrations: solved examples that a template shows the model before the text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from polyvec.errors import InputError, MissingExtraError


@dataclass(frozen=True, slots=True)
class Example:
    """One demonstration: a query, and a document or response that answers it.

    `instruction` is for formats that repeat it; None takes the call's.
    """

    query: str
    document: str
    instruction: str | None = None


def nearest_examples(query: str, pool: Sequence[Example], k: int) -> tuple[Example, ...]:
    """The k examples whose queries are nearest to `query` by BM25, the nearest last.

    As in RARe (Tejaswi et al. 2024, arXiv:2410.20088; k=5). An example with the same query is
    left out, since its document would be the answer. Equal scores keep the pool's order.
    RARe's Lucene also stems and removes stop words; this does neither.
    Raises InputError for a negative k.
    """
    if k < 0:
        raise InputError(f"nearest_examples: k must be 0 or more, got {k}")
    pool = tuple(pool)
    scores = _scores(pool, words(query))
    others = [i for i, example in enumerate(pool) if example.query.strip() != query.strip()]
    best = sorted(others, key=lambda i: (-scores[i], i))[:k]
    return tuple(pool[i] for i in reversed(best))


def words(text: str) -> list[str]:
    """Lower-case words of any script, as BM25 counts them."""
    return re.findall(r"\w+", text.lower())


def _scores(pool: tuple[Example, ...], query: list[str]) -> Sequence[float]:
    """A BM25 score per example; zeros if no word can match."""
    index = _index(pool) if query else None
    return [0.0] * len(pool) if index is None else index.get_scores(query).tolist()


@lru_cache(maxsize=4)
def _index(pool: tuple[Example, ...]) -> Any:
    """The BM25 index of a pool, cached since many texts use the same pool; None without words."""
    try:
        import bm25s
    except ImportError:
        raise MissingExtraError("bm25s", "index", "ranking demonstrations by BM25") from None
    corpus = [words(example.query) for example in pool]
    if not any(corpus):
        return None
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return index
