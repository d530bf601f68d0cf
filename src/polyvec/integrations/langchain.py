"""An embedder as LangChain's `Embeddings`, an index as its `VectorStore`."""

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from polyvec.data.texts import Record
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.sources import DEFAULT_MODEL
from polyvec.errors import InputError
from polyvec.index.records import Hit
from polyvec.index.store import Index
from polyvec.integrations.texts import (
    document_vectors,
    embedder_of,
    index_of,
    missing,
    query_vector,
    table,
)

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
except ModuleNotFoundError:
    raise missing("langchain-core", "PolyvecEmbeddings") from None


class PolyvecEmbeddings(Embeddings):
    """Queries and documents, each with the prompt that the model has for them.

    >>> from polyvec.integrations.langchain import PolyvecEmbeddings
    >>> len(PolyvecEmbeddings().embed_query("a cat"))
    384
    """

    def __init__(
        self,
        model_name: str | Path | Embedder = DEFAULT_MODEL,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
        query_encode_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """The embedder, or that of a folder or hub id, which `model_kwargs` load (device, dtype).

        `encode_kwargs` are options of `Embedder.encode` (batch_size, normalize_embeddings,
        prompt); queries take `query_encode_kwargs` in their place, if given.
        """
        self.encode_kwargs = table("encode_kwargs", encode_kwargs)
        queries = table("query_encode_kwargs", query_encode_kwargs)
        self.query_encode_kwargs = queries or dict(self.encode_kwargs)
        self.embedder = embedder_of(model_name, table("model_kwargs", model_kwargs))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text, as documents."""
        return document_vectors(self.embedder, texts, self.encode_kwargs)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return query_vector(self.embedder, text, self.query_encode_kwargs)


class PolyvecVectorStore(VectorStore):
    """An index, in a folder or on a server by its URL, which embeds texts and queries itself.

    Searches take `filter`, as text or as a dict ({"lang": "en", "year": {"$gte": 2020}}), and
    the options of `Index.search`: mode="hybrid", rerank, exact.

    >>> from polyvec.integrations.langchain import PolyvecVectorStore
    >>> store = PolyvecVectorStore("my-index", "all-MiniLM-L6-v2")          # doctest: +SKIP
    >>> retriever = store.as_retriever(search_kwargs={"k": 3, "filter": 'lang = "en"'})
    ... # doctest: +SKIP
    """

    def __init__(
        self,
        index: str | Path | Index,
        model: str | Path | Embedder | PolyvecEmbeddings | None = None,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """The index of a place, or a new one there; its own model if none is given."""
        given = model.embedder if isinstance(model, PolyvecEmbeddings) else model
        self.index = index_of(index, given, **table("model_kwargs", model_kwargs))

    @property
    def embeddings(self) -> Embeddings:
        """The model of the index."""
        return PolyvecEmbeddings(self.index.embedder)  # type: ignore[arg-type]

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add the texts, in place of those of equal ids; their ids, new ones where there are none.

        Raises DataError for metadata that is not text, a number, true or false.
        """
        held = list(texts)
        names = [each or str(uuid.uuid4()) for each in (ids or [None] * len(held))]
        metadata = metadatas or [{}] * len(held)
        if not len(held) == len(names) == len(metadata):
            raise InputError(
                f"{len(held)} texts, {len(names)} ids and {len(metadata)} tables of metadata"
            )
        rows = zip(names, held, metadata, strict=True)
        self.index.add([Record(*row) for row in rows], show_progress_bar=False, **kwargs)
        return names

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete the texts of these ids; whether there was one."""
        if ids is None:
            raise InputError("delete needs ids; to delete all texts, delete the index")
        return self.index.delete(ids) > 0

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The texts of these ids that exist."""
        return [
            Document(page_content=each.text, metadata=dict(each.metadata), id=each.id)
            for each in self.index.get(ids)
        ]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The k best texts."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The k best texts with their scores; higher is better."""
        if not isinstance(query, str):
            raise InputError(f"the query is {type(query).__name__}, expected a text")
        (hits,) = self.index.search([query], top_k=k, **kwargs)
        return [(_document(hit), hit.score) for hit in hits]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """k of the best `fetch_k` texts that are near the query and far from one another."""
        (hits,) = self.index.search([query], top_k=fetch_k, **kwargs)
        rows = self.index.engine.get([hit.id for hit in hits], vectors=True)
        (vectors,) = rows.vectors.values()
        asked = query_vector(self.index.embedder, query, {})  # type: ignore[arg-type]
        stored = vectors.to_dense()
        chosen = maximal_marginal_relevance(_array(asked), list(stored), lambda_mult, k)
        return [_document(hits[place]) for place in chosen]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """For thresholds of a retriever: the cosine itself, of which those below 0 count as 0."""
        if self.index.description.similarity != "cosine":
            raise InputError(
                f"the index ranks by {self.index.description.similarity}, which has no scale of 0 "
                "to 1 for a threshold; use search_type='similarity'"
            )
        return lambda score: min(1.0, max(0.0, score))

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: str | Path | Embedder | PolyvecEmbeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        index: str | Path | Index,
        **kwargs: Any,
    ) -> Self:
        """A store at the place `index` with these texts added."""
        store = cls(index, embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store


def _document(hit: Hit) -> Document:
    return Document(page_content=hit.text, metadata=dict(hit.metadata), id=hit.id)


def _array(vector: list[float]) -> Any:
    import numpy as np

    return np.array(vector, np.float32)
