"""An embedder as LangChain's `Embeddings`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.sources import DEFAULT_MODEL
from polyvec.integrations.texts import document_vectors, embedder_of, missing, query_vector, table

try:
    from langchain_core.embeddings import Embeddings
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
