"""Embedders as Haystack components: of a query, and of documents.

Haystack loads components of its own modules only; for a stored pipeline with these say
`Pipeline.loads(text, allowed_modules=["polyvec.*"])`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.sources import DEFAULT_MODEL
from polyvec.errors import InputError
from polyvec.integrations.texts import document_vectors, embedder_of, missing, query_vector, table

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ModuleNotFoundError:
    raise missing("haystack-ai", "PolyvecTextEmbedder") from None


class _Embedding:
    """A component with a model, which is loaded when it is first needed."""

    def __init__(
        self,
        model: str | Path | Embedder = DEFAULT_MODEL,
        *,
        prompt: str | None = None,
        batch_size: int | None = 32,
        progress_bar: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """The embedder, or that of a folder or hub id, which `model_kwargs` load (device, dtype).

        `prompt` stands in place of the model's own. `encode_kwargs` are further options of
        `Embedder.encode` (normalize_embeddings, truncate_dim).
        """
        self.model, self.prompt = model, prompt
        self.batch_size, self.progress_bar = batch_size, progress_bar
        self.model_kwargs = table("model_kwargs", model_kwargs)
        self.encode_kwargs = table("encode_kwargs", encode_kwargs)
        self.embedder: Embedder | None = None

    def warm_up(self) -> None:
        """Load the model."""
        self._loaded()

    def _loaded(self) -> Embedder:
        if self.embedder is None:
            self.embedder = embedder_of(self.model, self.model_kwargs)
        return self.embedder

    def _options(self) -> dict[str, Any]:
        own = {} if self.prompt is None else {"prompt": self.prompt}
        bar = {"batch_size": self.batch_size, "show_progress_bar": self.progress_bar}
        return {**bar, **self.encode_kwargs, **own}

    def _settings(self) -> dict[str, Any]:
        """The constructor's arguments; InputError for an embedder that has no name."""
        if not isinstance(self.model, str | Path):
            raise InputError(
                f"{type(self).__name__}: to store it, give the model by its folder or hub id"
            )
        names = ("prompt", "batch_size", "progress_bar", "model_kwargs", "encode_kwargs")
        return {"model": str(self.model), **{name: getattr(self, name) for name in names}}

    def to_dict(self) -> dict[str, Any]:
        """The component as Haystack stores it."""
        return dict(default_to_dict(self, **self._settings()))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component that to_dict gave."""
        found: Self = default_from_dict(cls, data)
        return found


@component
class PolyvecTextEmbedder(_Embedding):
    """Embeds a text as a query.

    >>> from polyvec.integrations.haystack import PolyvecTextEmbedder
    >>> len(PolyvecTextEmbedder().run(text="a cat")["embedding"])
    384
    """

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """{"embedding": the text's vector}."""
        return {"embedding": query_vector(self._loaded(), text, self._options())}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, text)


@component
class PolyvecDocumentEmbedder(_Embedding):
    """Embeds documents, their content after chosen fields of their metadata.

    >>> from haystack import Document
    >>> from polyvec.integrations.haystack import PolyvecDocumentEmbedder
    >>> found = PolyvecDocumentEmbedder().run(documents=[Document(content="a cat")])
    >>> len(found["documents"][0].embedding)
    384
    """

    def __init__(
        self,
        model: str | Path | Embedder = DEFAULT_MODEL,
        *,
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
        **options: Any,
    ) -> None:
        """`options` are those of PolyvecTextEmbedder; fields that a document lacks are left out."""
        _Embedding.__init__(self, model, **options)  # @component makes another class: no super()
        fields = meta_fields_to_embed
        if not isinstance(fields, list | tuple) or not all(isinstance(f, str) for f in fields):
            raise InputError(f"meta_fields_to_embed is {fields!r}, expected a list of names")
        if not isinstance(embedding_separator, str):
            raise InputError(f"embedding_separator is {embedding_separator!r}, expected a text")
        self.meta_fields_to_embed = list(meta_fields_to_embed)
        self.embedding_separator = embedding_separator

    def _settings(self) -> dict[str, Any]:
        names = ("meta_fields_to_embed", "embedding_separator")
        return {**_Embedding._settings(self), **{name: getattr(self, name) for name in names}}

    def _text(self, document: Any) -> str:
        fields = (document.meta.get(name) for name in self.meta_fields_to_embed)
        found = [str(value) for value in fields if value is not None]
        return self.embedding_separator.join([*found, document.content or ""])

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """{"documents": copies of the documents with their vectors}."""
        if not isinstance(documents, list):
            raise InputError(f"expected a list of Documents, got {type(documents).__name__}")
        wrong = [each for each in documents if not isinstance(each, Document)]
        if wrong:
            raise InputError(f"expected a list of Documents, got one of {type(wrong[0]).__name__}")
        texts = [self._text(each) for each in documents]
        vectors = document_vectors(self._loaded(), texts, self._options())
        pairs = zip(documents, vectors, strict=True)
        return {"documents": [replace(each, embedding=vector) for each, vector in pairs]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, documents)
