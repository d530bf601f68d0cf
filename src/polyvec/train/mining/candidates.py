"""Candidates: the documents nearest to each query, by a model's vectors or by shared words.

To add a search: a function or class with this call, and its line in CANDIDATES.
Q queries, N documents, K candidates, E numbers a vector, P pairs.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from polyvec.data.words import normalized, words
from polyvec.embed.projection.similarity import SIMILARITIES
from polyvec.errors import DataError, MissingExtraError, ModelError, SettingsError
from polyvec.index import exact
from polyvec.interfaces import RunOptions, TextEncoder
from polyvec.registry import Registry
from polyvec.storage.vector_cache import EmbeddingCache
from polyvec.train.mining.documents import Text

CHUNK = 256  # texts encoded before they are cached: the most that an interrupted run loses


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates of each query, best first: float32 and int64 [Q, K].

    Where there are fewer than K, scores are -inf and rows -1. `wanted`: scores of the documents
    that were asked for, for each query.
    """

    scores_QK: np.ndarray
    rows_QK: np.ndarray
    wanted: list[np.ndarray]


class Search(Protocol):
    """Finds the nearest of the documents that it was made with."""

    def find(self, queries: Sequence[Text], k: int, wanted: Sequence[Sequence[int]]) -> Found:
        """The k nearest of each query, and its scores with the documents `wanted` for it."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a search may use: the embedder, a cache of vectors, and how to run."""

    embedder: TextEncoder | None = None
    cache: EmbeddingCache | None = None
    options: RunOptions | None = None


class NearestVectors:
    """Exact search by the model's own similarity, each text read as the training reads it."""

    def __init__(self, documents: Sequence[Text], tools: Tools) -> None:
        if tools.embedder is None:
            raise SettingsError("mining with candidates = 'embedder' needs a model")
        self.embedder, self.tools = tools.embedder, tools
        self.documents_NE = self._vectors(documents)
        self.similarity: str | exact.Similarity = self.embedder.similarity_fn_name
        if self.similarity not in SIMILARITIES:
            self.similarity = lambda a, b: np.asarray(self.embedder.similarity(a, b))

    def find(self, queries: Sequence[Text], k: int, wanted: Sequence[Sequence[int]]) -> Found:
        queries_QE = self._vectors(queries)
        try:
            scores_QK, rows_QK = exact.top_k(queries_QE, self.documents_NE, k, self.similarity)
        except exact.NotFiniteError as error:
            raise ModelError(
                f"the similarity of query {queries[error.query].text[:60]!r} and a document is NaN "
                "or infinite; try dtype float32"
            ) from None
        lengths = [len(rows) for rows in wanted]
        places_P = np.fromiter(itertools.chain.from_iterable(wanted), np.int64, sum(lengths))
        owners_P = np.repeat(np.arange(len(queries)), lengths)
        scores_P = np.empty(len(places_P), np.float32)
        for start in range(0, len(places_P), CHUNK):
            part = slice(start, start + CHUNK)
            scores_P[part] = self.embedder.similarity_pairwise(
                queries_QE[owners_P[part]], self.documents_NE[places_P[part]]
            )
        return Found(scores_QK, rows_QK, np.split(scores_P, np.cumsum(lengths)[:-1]))

    def _vectors(self, texts: Sequence[Text]) -> np.ndarray:
        """Vectors [N, E]; texts of one side and instruction are encoded together."""
        found_NE = np.empty((len(texts), self.embedder.get_embedding_dimension()), np.float32)
        sides = [(each.role, each.instruction) for each in texts]
        for side in dict.fromkeys(sides):
            rows = np.array([row for row, each in enumerate(sides) if each == side])
            some = [texts[row].text for row in rows]
            found_NE[rows] = self._encoded(some, *side)
        return found_NE

    def _encoded(self, texts: list[str], role: str, instruction: str | None) -> np.ndarray:
        chosen: dict[str, Any] = {"role": role}
        if instruction is not None:
            chosen["prompt"] = instruction
        embedder, options = self.embedder, self.tools.options or RunOptions(truncate="silent")
        found_NE = np.empty((len(texts), embedder.get_embedding_dimension()), np.float32)
        entries, missing = None, np.arange(len(texts))
        if self.tools.cache is not None:
            key = embedder.prompt_key(**chosen)
            name = embedder.vectors_fingerprint()
            entries = self.tools.cache.entries(name, key, found_NE.shape[1])
            hits = entries.get(texts)
            found_NE[hits.rows] = hits.vectors
            missing = np.setdiff1d(missing, hits.rows)
        todo = [texts[row] for row in missing]
        done = 0
        for chunk in embedder.encode_iter(todo, chunk_size=CHUNK, options=options, **chosen):
            rows = missing[done : done + len(chunk)]
            wrong = np.flatnonzero(~np.isfinite(chunk).all(axis=1))
            if len(wrong):
                text = texts[rows[wrong[0]]][:60]
                raise ModelError(f"the vector of {text!r} holds NaN or infinity; try dtype float32")
            found_NE[rows] = chunk
            if entries is not None:
                entries.put(todo[done : done + len(chunk)], chunk)
            done += len(chunk)
        return found_NE


class SharedWords:
    """BM25 (Lucene's form, k1 1.5, b 0.75) over words as `polyvec index` counts them.

    Without case, marks and English stop words, in Snowball's English stems; of scripts without
    spaces each letter is a word. A document that shares no word with the query is no candidate.
    """

    def __init__(self, documents: Sequence[Text], tools: Tools) -> None:
        what = "mining with candidates = 'bm25'"
        try:
            import bm25s
            from bm25s.stopwords import STOPWORDS_EN
        except ImportError:
            raise MissingExtraError("bm25s", "index", what) from None
        try:
            import Stemmer
        except ImportError:
            raise MissingExtraError("PyStemmer", "index", what) from None
        self.stop_words, self.stems = frozenset(STOPWORDS_EN), Stemmer.Stemmer("english").stemWords
        corpus = [self.words(each.text) for each in documents]
        if not any(corpus):
            raise DataError("bm25: no document has a word")
        self.index = bm25s.BM25()
        self.index.index(corpus, show_progress=False)

    def words(self, text: str) -> list[str]:
        found = (each for each in words(normalized(text)) if each not in self.stop_words)
        return list(self.stems(list(found)))

    def find(self, queries: Sequence[Text], k: int, wanted: Sequence[Sequence[int]]) -> Found:
        num = self.index.scores["num_docs"]
        width = min(k, num)
        scores_QK = np.full((len(queries), width), -np.inf, np.float32)
        rows_QK = np.full((len(queries), width), -1, np.int64)
        asked = []
        for row, (query, places) in enumerate(zip(queries, wanted, strict=True)):
            found = self.words(query.text)
            scores_N = self.index.get_scores(found) if found else np.zeros(num, np.float32)
            best = _best(scores_N, width)
            best = best[scores_N[best] > 0]
            scores_QK[row, : len(best)], rows_QK[row, : len(best)] = scores_N[best], best
            asked.append(scores_N[list(places)])
        return Found(scores_QK, rows_QK, asked)


def _best(scores_N: np.ndarray, k: int) -> np.ndarray:
    """The k highest, best first; equal scores in the order of their rows."""
    kth = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
    rows = np.flatnonzero(scores_N >= kth)
    found: np.ndarray = rows[np.argsort(-scores_N[rows], kind="stable")[:k]]
    return found


class MakesSearch(Protocol):
    """A part of CANDIDATES: a search over these documents."""

    def __call__(self, documents: Sequence[Text], tools: Tools) -> Search: ...


CANDIDATES: Registry[MakesSearch] = Registry(
    "candidates", {"embedder": NearestVectors, "bm25": SharedWords}
)
