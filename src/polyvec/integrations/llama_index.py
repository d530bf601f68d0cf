"""An embedder as LlamaIndex's `BaseEmbedding`, an index as its `BaseRetriever`."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyvec.data.texts import Record
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.sources import DEFAULT_MODEL
from polyvec.errors import InputError, ModelError, known
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
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr, ValidationError
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
except ModuleNotFoundError:
    raise missing("llama-index-core", "PolyvecEmbedding") from None


IN_MEMORY = " in memory"  # after the class's name, for a model without a folder


class PolyvecEmbedding(BaseEmbedding):
    """Queries and texts (documents), each with the prompt that the model has for them.

    >>> from polyvec.integrations.llama_index import PolyvecEmbedding
    >>> len(PolyvecEmbedding().get_query_embedding("a cat"))
    384
    """

    query_instruction: str | None = Field(None, description="Prompt of queries; None: the model's.")
    text_instruction: str | None = Field(None, description="Prompt of texts; None: the model's.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Options of loading.")
    encode_kwargs: dict[str, Any] = Field(default_factory=dict, description="Options of encode.")
    # Not a setting. An ingestion pipeline keeps vectors under a hash of the fields, which has to
    # change with the weights.
    fingerprint: str | None = Field(None, description="Hash of the model.")
    _embedder: Any = PrivateAttr()

    def __init__(
        self,
        model_name: str | Path | Embedder = DEFAULT_MODEL,
        *,
        model_kwargs: dict[str, Any] | None = None,
        fingerprint: str | None = None,
        **fields: Any,
    ) -> None:
        """The embedder, or that of a folder or hub id, which `model_kwargs` load (device, dtype).

        `embed_batch_size` is the number of texts that are encoded at once; `encode_kwargs` are
        options of `Embedder.encode`. Raises ModelError where `fingerprint`, of an earlier
        object's to_dict, is another model's, and InputError for fields that are unknown or
        ill-typed, and the dict of an embedder that was in memory only.
        """
        if isinstance(model_name, str) and model_name.endswith(IN_MEMORY):
            raise InputError(
                f"{model_name}: the dict is of an embedder that had no folder; save that with "
                "save_pretrained(folder), and give PolyvecEmbedding the folder"
            )
        for name in fields:
            if name not in type(self).model_fields:
                raise InputError(
                    f"PolyvecEmbedding has no field {name!r}.{known(name, type(self).model_fields)}"
                )
        embedder = embedder_of(model_name, table("model_kwargs", model_kwargs))
        found = embedder.fingerprint()
        if not isinstance(fingerprint, str | None):
            raise InputError(f"fingerprint is {fingerprint!r}, expected a text")
        if fingerprint is not None and fingerprint != found:
            raise ModelError(
                f"{model_name}: not the model that was saved (fingerprint {found[:12]}, expected "
                f"{fingerprint[:12]}); embed the texts again, or load the model of that time"
            )
        own = isinstance(model_name, str | Path)
        named = str(model_name) if own else f"{type(embedder).__name__}{IN_MEMORY}"
        try:
            super().__init__(
                model_name=named, model_kwargs=model_kwargs or {}, fingerprint=found, **fields
            )
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(
                f"{place} is {str(first['input'])[:60]!r}: {first['msg'].lower()}"
            ) from None
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """The name in what to_dict gives."""
        return "PolyvecEmbedding"

    def _options(self, instruction: str | None) -> dict[str, Any]:
        options = {"batch_size": self.embed_batch_size, **self.encode_kwargs}
        return options if instruction is None else {**options, "prompt": instruction}

    def _get_query_embedding(self, query: str) -> list[float]:
        return query_vector(self._embedder, query, self._options(self.query_instruction))

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return document_vectors(self._embedder, texts, self._options(self.text_instruction))

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class PolyvecRetriever(BaseRetriever):
    """Searches an index, in a folder or on a server by its URL, which embeds texts and queries.

    >>> from polyvec.integrations.llama_index import PolyvecRetriever
    >>> retriever = PolyvecRetriever("my-index", filter='lang = "en"')      # doctest: +SKIP
    """

    def __init__(
        self,
        index: str | Path | Index,
        model: str | Path | Embedder | None = None,
        *,
        similarity_top_k: int = 10,
        filter: str | Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        callback_manager: Any = None,
        **search: Any,
    ) -> None:
        """The index of a place, or a new one there; its own model if none is given.

        `search` are options of `Index.search`: mode="hybrid", rerank, exact.
        """
        self.index = index_of(index, model, **table("model_kwargs", model_kwargs))
        self._search = {"top_k": similarity_top_k, "filter": filter, **search}
        super().__init__(callback_manager=callback_manager)

    def add(self, nodes: Sequence[BaseNode]) -> list[str]:
        """Add nodes, such as documents, in place of those of equal ids; their ids.

        What is embedded is the text without its metadata. Raises DataError for metadata that is
        not text, a number, true or false.
        """
        records = [
            Record(each.node_id, each.get_content(MetadataMode.NONE), dict(each.metadata))
            for each in nodes
        ]
        self.index.add(records, show_progress_bar=False)
        return [record.id for record in records]

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        (hits,) = self.index.search([query_bundle.query_str], **self._search)
        return [
            NodeWithScore(
                node=TextNode(id_=hit.id, text=hit.text, metadata=dict(hit.metadata)),
                score=hit.score,
            )
            for hit in hits
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
