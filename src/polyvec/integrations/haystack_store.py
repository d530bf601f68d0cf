"""An index as a Haystack document store, and the component that searches it.

For a stored pipeline with these say `Pipeline.loads(text, allowed_modules=["polyvec.*"])`.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from polyvec.data.texts import Record
from polyvec.embed.embedder import Embedder
from polyvec.errors import InputError, known
from polyvec.index.filters import And, Compare, Exists, Filter, In, Not, Or, matches
from polyvec.index.store import Index
from polyvec.integrations.texts import index_of, missing, table

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy
except ModuleNotFoundError:
    raise missing("haystack-ai", "PolyvecDocumentStore") from None

SIGNS = {"==": "=", "!=": "!=", ">": ">", ">=": ">=", "<": "<", "<=": "<="}
OPERATORS = (*SIGNS, "in", "not in", "AND", "OR", "NOT")


class PolyvecDocumentStore:
    """An index in a folder or on a server by its URL; it embeds what is written to it.

    >>> from polyvec.integrations.haystack_store import PolyvecDocumentStore
    >>> store = PolyvecDocumentStore("my-index", "all-MiniLM-L6-v2")        # doctest: +SKIP
    """

    def __init__(
        self,
        index: str | Path | Index,
        model: str | Path | Embedder | None = None,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """The index of a place, or a new one there; its own model if none is given."""
        self._given = (index, model, table("model_kwargs", model_kwargs))
        self.index = index_of(index, model, **self._given[2])

    def to_dict(self) -> dict[str, Any]:
        """The store as Haystack keeps it; InputError for one that was given as objects."""
        index, model, options = self._given
        if not isinstance(index, str | Path) or not isinstance(model, str | Path | None):
            raise InputError("to store it, give the index by its place, and the model by its name")
        named = None if model is None else str(model)
        return dict(default_to_dict(self, index=str(index), model=named, model_kwargs=options))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The store that to_dict gave."""
        found: Self = default_from_dict(cls, data)
        return found

    def count_documents(self) -> int:
        """Documents in all."""
        return len(self.index)

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that the filters let through, or all."""
        asked = filter_of(filters)
        return [
            Document(id=each.id, content=each.text, meta=dict(each.metadata))
            for each in self.index
            if asked is None or matches(asked, each.metadata)
        ]

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Embed and store the documents; how many were written.

        Raises DuplicateDocumentError for ids that are there, and writes nothing, unless the
        policy skips or overwrites them. DataError for metadata that is not text, a number, true
        or false.
        """
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise InputError("documents is not a list of Documents")
        for each in documents:
            if each.content is None:
                raise InputError(f"document {each.id!r} has no content to embed")
        if policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL, DuplicatePolicy.SKIP):
            there = {record.id for record in self.index.get([each.id for each in documents])}
            if there and policy != DuplicatePolicy.SKIP:
                raise DuplicateDocumentError(f"ids that are there already: {sorted(there)[:5]}")
            documents = [each for each in documents if each.id not in there]
        records = [Record(each.id, str(each.content), dict(each.meta)) for each in documents]
        self.index.add(records, show_progress_bar=False)
        return len(records)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete the documents of these ids."""
        self.index.delete(document_ids)


@component
class PolyvecRetriever:
    """Finds documents of a store by a query, by words or by both."""

    def __init__(
        self,
        document_store: PolyvecDocumentStore,
        *,
        top_k: int = 10,
        filters: dict[str, Any] | None = None,
        mode: str = "dense",
    ) -> None:
        """`mode` is "dense", "words" or "hybrid"; a call's filters stand in place of these."""
        self.document_store, self.top_k = document_store, top_k
        self.filters, self.mode = filters, mode

    def to_dict(self) -> dict[str, Any]:
        """The component as Haystack stores it."""
        options = {"top_k": self.top_k, "filters": self.filters, "mode": self.mode}
        return dict(default_to_dict(self, document_store=self.document_store.to_dict(), **options))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component that to_dict gave."""
        options = dict(data["init_parameters"])
        store = PolyvecDocumentStore.from_dict(options.pop("document_store"))
        found: Self = cls(store, **options)
        return found

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, Any]:
        """{"documents": the best ones, with their scores}."""
        asked = filter_of(filters if filters is not None else self.filters)
        mode: Any = self.mode
        (hits,) = self.document_store.index.search(
            [query], top_k=self.top_k if top_k is None else top_k, filter=asked, mode=mode
        )
        return {
            "documents": [
                Document(id=hit.id, content=hit.text, meta=dict(hit.metadata), score=hit.score)
                for hit in hits
            ]
        }

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, Any]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, query, filters, top_k)


def filter_of(given: Any) -> Filter | None:
    """Haystack's filter ({"field": "meta.year", "operator": ">=", "value": 2020}) as a tree.

    Conditions are joined by {"operator": "AND", "conditions": [...]}, OR and NOT. A document
    without the field fits no comparison but `!=` and `not in`, as in Haystack's own store.
    Raises InputError for what is neither.
    """
    if not given:
        return None
    if not isinstance(given, Mapping) or given.get("operator") not in OPERATORS:
        told = given.get("operator") if isinstance(given, Mapping) else given
        raise InputError(f"filters: operator {told!r:.60} is not known.{known(told, OPERATORS)}")
    sign = given["operator"]
    if sign in ("AND", "OR", "NOT"):
        parts = [filter_of(each) for each in given.get("conditions") or ()]
        held = tuple(each for each in parts if each is not None)
        if not held:
            raise InputError(f"filters: {sign} has no conditions")
        return Not(And(held)) if sign == "NOT" else (And(held) if sign == "AND" else Or(held))
    field, value = str(given.get("field", "")).removeprefix("meta."), given.get("value")
    if sign in ("in", "not in"):
        found: Filter = In(field, tuple(value if isinstance(value, list | tuple | set) else ()))
        return found if sign == "in" else Not(found)
    if value is None and sign in ("==", "!="):
        return Not(Exists(field)) if sign == "==" else Exists(field)
    if not isinstance(value, str | int | float):
        raise InputError(f"filters: {field} is compared with {value!r:.60}")
    if sign == "!=":
        return Not(Compare(field, "=", value))
    return Compare(field, SIGNS[sign], value)  # type: ignore[arg-type]
