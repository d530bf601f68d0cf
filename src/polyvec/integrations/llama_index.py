"""An embedder as LlamaIndex's `BaseEmbedding`."""

import asyncio
from pathlib import Path
from typing import Any

from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.sources import DEFAULT_MODEL
from polyvec.errors import InputError, ModelError, known
from polyvec.integrations.texts import document_vectors, embedder_of, missing, query_vector, table

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr, ValidationError
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
