"""Demonstrations: solved examples that a template shows the model before the text."""

import re
from collections.abc import Iterable, Sequence
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
    return _pool(tuple(pool)).nearest(query, k)


class ExamplePool:
    """Examples that are searched often: `nearest` is `nearest_examples` with the index kept."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.examples = tuple(examples)
        self.places: dict[str, list[int]] = {}
        for place, example in enumerate(self.examples):
            self.places.setdefault(example.query.strip(), []).append(place)
        self.index = _index([words(example.query) for example in self.examples])

    def nearest(self, query: str, k: int) -> tuple[Example, ...]:
        import numpy as np  # here, since the table of templates is read without it

        if k < 0:
            raise InputError(f"nearest_examples: k must be 0 or more, got {k}")
        asked = words(query)
        scores = np.zeros(len(self.examples))
        if self.index is not None and asked:
            scores += self.index.get_scores(asked)
        order = np.argsort(-scores, kind="stable")
        same = set(self.places.get(query.strip(), ()))
        # So many may be left out before k are found.
        best = [place for place in order[: k + len(same)].tolist() if place not in same][:k]
        return tuple(self.examples[place] for place in reversed(best))


def words(text: str) -> list[str]:
    """Lower-case words of any script, as BM25 counts them."""
    return re.findall(r"\w+", text.lower())


@lru_cache(maxsize=4)
def _pool(examples: tuple[Example, ...]) -> ExamplePool:
    """Cached, since many texts are asked of the same pool."""
    return ExamplePool(examples)


def _index(corpus: list[list[str]]) -> Any:
    """The BM25 index of texts as words; None without words."""
    try:
        import bm25s
    except ImportError:
        raise MissingExtraError("bm25s", "index", "ranking demonstrations by BM25") from None
    if not any(corpus):
        return None
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return index
