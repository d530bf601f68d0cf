"""Index: texts, their metadata and their vectors in a place, and every way to find them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack, cast

import numpy as np

from polyvec.data.chunking import is_late
from polyvec.data.texts import Record
from polyvec.embed.encoding import check_texts
from polyvec.errors import IndexStoreError, InputError
from polyvec.index import adding, searching
from polyvec.index.engines import engine_of
from polyvec.index.engines.checks import form_of
from polyvec.index.engines.interface import Description, Engine
from polyvec.index.filters import Filter, check_fields, read_filter
from polyvec.index.late import add_late
from polyvec.index.records import BuildReport, Hit, as_records, check_embedder
from polyvec.interfaces import PromptChoice, RunOptions, TextEncoder, Truncate, Vectors

__all__ = ["BuildReport", "Hit", "Index"]


class Index:
    """Texts in a place: a folder, or a server by its URL (`polyvec.index.engines.ENGINES`).

    Each text has an id, metadata and the vectors of one model, dense, sparse or several, as the
    model gives them. What add, update and delete have returned from is kept, after a kill, too.

    >>> with Index.create("my-index", embedder) as index:               # doctest: +SKIP
    ...     index.add([Record("a", "a cat", {"lang": "en"})])
    ...     (hits,) = index.search(["a pet"], top_k=3, filter='lang = "en"', mode="hybrid")
    """

    def __init__(self, engine: Engine, embedder: TextEncoder | None = None) -> None:
        self.engine, self.embedder = engine, embedder

    # ---- open and close -------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        where: str | Path,
        embedder: TextEncoder,
        *,
        model: str = "",
        scale: str = "",
        attention: str = "",
        options: str = "",
        chunking: str = "",
        **prompt: Unpack[PromptChoice],
    ) -> Self:
        """A new, empty index for this model's vectors.

        `model` is the name that `polyvec search` loads by default: of a recipe, if there is a
        `scale`, with this `attention`, if there is one, and with these `options` of the command
        line. `prompt`, `prompt_name` and `role` are those of the texts; by default they are read
        as documents. `chunking` says how the texts were cut from documents.
        Raises IndexStoreError if there is an index already, or the place cannot be reached.
        """
        told = {"model": model, "scale": scale, "attention": attention, "options": options}
        description = describe(embedder, {**told, "chunking": chunking}, dict(prompt))
        return cls(engine_of(where).create(str(where), description), embedder)

    @classmethod
    def open(cls, where: str | Path, embedder: TextEncoder | None = None) -> Self:
        """The index that is there; `embedder` is that of the calls that name none.

        Raises IndexStoreError if there is none, if it is damaged or of a newer format, or if
        another model made it.
        """
        index = cls(engine_of(where).open(str(where)), embedder)
        if embedder is not None:
            index.check(embedder)
        return index

    @classmethod
    def build(
        cls,
        where: str | Path,
        records: Iterable[Record],
        embedder: TextEncoder,
        *,
        model: str = "",
        scale: str = "",
        attention: str = "",
        options: str = "",
        chunking: str = "",
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        truncate: Truncate = "warn",
        late: Mapping[str, str] | None = None,
        **prompt: Unpack[PromptChoice],
    ) -> tuple[Self, BuildReport]:
        """Make the place hold exactly these records: changed ones are written, others deleted.

        Texts whose vectors are there are not encoded again. An index of another model or prompt
        is replaced once the new one is complete; what a process that is killed had written is
        taken up by the next one. A folder of plain files stays one (`PlainIndex.build`).
        `late` is that of `add`, the other arguments are those of `create`.
        Raises DataError for a duplicate id, IndexStoreError if the folder contains other files or
        another process is writing.
        """
        told = {"model": model, "scale": scale, "attention": attention, "options": options}
        how = RunOptions(batch_size, show_progress_bar=show_progress_bar, truncate=truncate)
        check_embedder(embedder)
        items = as_records(records)
        kind = engine_of(where)
        if kind.name == "plain":
            if late is not None:
                raise InputError(f"{where}: plain files have no late chunks; give another folder")
            from polyvec.index.engines.plain import PlainEngine
            from polyvec.index.plain import PlainIndex

            asked: Any = {**told, **prompt, "batch_size": batch_size, "truncate": truncate}
            made, report = PlainIndex.build(
                where, items, embedder, show_progress_bar=show_progress_bar, **asked
            )
            return cls(PlainEngine(made), embedder), report
        description = describe(embedder, {**told, "chunking": chunking}, dict(prompt))
        engine = _to_fill(kind, str(where), description)
        with engine.writing():
            if late is None:
                report = adding.add(engine, items, embedder, how, _choice(description))
            else:
                report = add_late(engine, items, late, embedder, _choice(description))
            wanted = {item.id for item in items}
            rows = engine.scan(vectors=False)
            gone = [each for part in rows for each in part.ids if each not in wanted]
            num_deleted = engine.delete(gone) if gone else 0
            engine.publish()
        return cls(engine, embedder), replace(report, num_deleted=num_deleted)

    def close(self) -> None:
        """Let go of connections and locks."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def description(self) -> Description:
        """What the index contains and what made it."""
        return self.engine.description

    def __len__(self) -> int:
        return self.engine.count()

    def count(self, filter: str | Mapping[str, Any] | Filter | None = None) -> int:
        """Texts that the filter lets through."""
        return self.engine.count(self._filter(filter))

    def __iter__(self) -> Iterator[Record]:
        """All texts with their metadata, in the order in which they are stored."""
        for rows in self.engine.scan(vectors=False):
            for name, text, metadata in zip(rows.ids, rows.texts, rows.metadata, strict=True):
                yield Record(name, text, metadata)

    def get(self, ids: Sequence[str]) -> list[Record]:
        """The texts of these ids that exist."""
        rows = self.engine.get(_ids(ids))
        return [Record(*row) for row in zip(rows.ids, rows.texts, rows.metadata, strict=True)]

    @property
    def vectors_NE(self) -> np.ndarray:  # noqa: N802 - carries its shape in its name
        """All dense vectors, in the order of iteration; ShapeError if texts have several."""
        parts = [
            vectors.to_dense() for rows in self.engine.scan() for vectors in rows.vectors.values()
        ]
        width = next(iter(self.description.dimensions.values()))
        return np.concatenate(parts or [np.empty((0, width), np.float32)])

    def check(self, embedder: TextEncoder) -> None:
        """Raises IndexStoreError unless this model, with these settings, made the index."""
        check_embedder(embedder)
        made = self.description
        if embedder.fingerprint() != made.model_sha256:
            raise IndexStoreError(
                f"{self._where}: built with another model ({made.built_with}) or with other "
                "settings of it, whose vectors cannot be compared; use that model, or build the "
                "index again"
            )

    # ---- write ----------------------------------------------------------------------------------

    def add(
        self,
        records: Iterable[Record],
        embedder: TextEncoder | None = None,
        *,
        vectors: Vectors | None = None,
        late: Mapping[str, str] | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        truncate: Truncate = "warn",
    ) -> BuildReport:
        """Add records, in place of those of equal ids, with the prompt of the index.

        Texts whose vectors are there, under whatever id, are not encoded again. `vectors`: one for
        each record, which the index's model has made elsewhere. `late`: the records are chunks of
        these texts, by id, and their vectors are pooled from what the model makes of the whole
        text (late chunking, `polyvec.index.late`).
        Raises DataError for a duplicate id or metadata of another kind, IndexStoreError for
        another model or while another process is writing.
        """
        if vectors is not None:
            return adding.add_given(self.engine, as_records(records), vectors)
        model = self._model(embedder)
        if late is not None:
            return add_late(
                self.engine, as_records(records), late, model, _choice(self.description)
            )
        if is_late(self.description.chunking):
            raise InputError(
                f"{self._where}: vectors of late chunks depend on the whole texts; pass them as "
                "late="
            )
        how = RunOptions(batch_size, show_progress_bar=show_progress_bar, truncate=truncate)
        return adding.add(self.engine, as_records(records), model, how, _choice(self.description))

    def update(
        self, records: Iterable[Record], embedder: TextEncoder | None = None, **options: Any
    ) -> BuildReport:
        """`add` for ids that are there; DataError, and nothing is written, for one that is not."""
        items = as_records(records)
        adding.check_known(self.engine, items)
        return self.add(items, embedder, **options)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete these ids; how many there were."""
        return self.engine.delete(_ids(ids))

    def compact(self) -> None:
        """Give back the space of what was replaced, and bring search indexes up to date.

        Writes do this, too, when it is time.
        """
        self.engine.optimize()

    # ---- find -----------------------------------------------------------------------------------

    def search(
        self,
        queries: str | Sequence[str],
        embedder: TextEncoder | None = None,
        *,
        top_k: int = 10,
        filter: str | Mapping[str, Any] | Filter | None = None,
        mode: searching.Mode = "dense",
        rerank: searching.Ranker | None = None,
        rerank_depth: int = searching.RERANKED,
        explain: bool = False,
        exact: bool = False,
        fusion: searching.Fusion = "rank",
        weights: tuple[float, float] = (1.0, 1.0),
        depth: int = searching.DEPTH,
        truncate: Truncate = "warn",
        **prompt: Unpack[PromptChoice],
    ) -> list[list[Hit]]:
        """The best texts of each query, best first; a single string is one query.

        filter: as text, `year >= 2020 and lang in ("en", "de")`, or as a dict (`filters`). mode:
        by the model's similarity ("dense", whatever form its vectors have), by the words that
        are shared ("words"), or by both ("hybrid"): the best `depth` of each are fused by rank,
        or by score, with `weights` (dense, words). rerank: a reranker orders the best
        `rerank_depth` anew. explain: each hit says which component found it and by which words.
        exact: no approximate index. `prompt`, `prompt_name` and `role` are those of the queries,
        by default read as queries.
        Raises IndexStoreError if another model made the index or a row is damaged, InputError for
        an unknown field and for what is not a text.
        """
        asked = searching.Asked(
            top_k, self._filter(filter), mode, fusion, weights, depth, exact, rerank, rerank_depth
        )
        if embedder is not None or mode != "words":
            self._model(embedder)
        queries = [queries] if isinstance(queries, str) else queries
        check_texts(queries)
        queries = list(queries)
        for place, query in enumerate(queries):
            if not isinstance(query, str):
                raise InputError(f"inputs[{place}] is {type(query).__name__}, not a string")
            if query.encode(errors="ignore").decode() != query:
                raise InputError(f"inputs[{place}] has a lone surrogate, which is not valid text")
        if not queries or not len(self):
            return [[] for _ in queries]
        vectors, model = None, embedder
        if mode != "words":
            ((form, width), *_) = self.description.dimensions.items()
            model = self._model(embedder)
            vectors = searching.query_vectors(model, queries, form, width, truncate, prompt)
        found = searching.search(self.engine, queries, vectors, asked, model)
        if not explain:
            return [[hit for hit, _ in hits] for hits in found]
        from polyvec.index.explain import explained

        return [
            explained(
                self.engine,
                query,
                hits,
                None if vectors is None else adding.picked(vectors, [row]),
                None if vectors is None else model,
                _choice(self.description),
            )
            for row, (query, hits) in enumerate(zip(queries, found, strict=True))
        ]

    # ---- inside ---------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return str(getattr(self.engine, "folder", self.engine.name))

    def _model(self, embedder: TextEncoder | None) -> TextEncoder:
        """The model of a call, which is that of the index."""
        if embedder is None and self.embedder is None:
            raise InputError(
                "embedder is None, expected an embedder: pass one, or open the index with one"
            )
        if embedder is not None or self.embedder is None:
            self.check(cast("TextEncoder", embedder))
            return cast("TextEncoder", embedder)
        return self.embedder

    def _filter(self, given: str | Mapping[str, Any] | Filter | None) -> Filter | None:
        found = read_filter(given)
        if found is not None:
            check_fields(found, self.description.fields)
        return found


def describe(
    embedder: TextEncoder, told: Mapping[str, Any], prompt: Mapping[str, Any]
) -> Description:
    """What an index of this model's vectors is, before it has any."""
    check_embedder(embedder)
    for name, value in told.items():
        if not isinstance(value, str):
            raise InputError(f"{name} is {value!r}, expected a string")
    given = {name: value for name, value in prompt.items() if value is not None}
    choice: Any = {"role": "document", **given}
    vectors, _ = embedder.encode_vectors([], role="document")
    similarity = embedder.similarity_fn_name
    return Description(
        model_sha256=embedder.fingerprint(),
        # Engines call the sum of the best dot products by the similarity of the tokens.
        similarity="dot" if similarity == "maxsim" else similarity,
        dimensions={form_of(vectors): vectors.dimension},
        prompt=embedder.prompt_key(**choice)[0] or "",
        asked=json.dumps(given, sort_keys=True) if given else "",
        **told,
    )


def _choice(description: Description) -> PromptChoice:
    """The prompt of the texts."""
    return cast("PromptChoice", {"role": "document", **json.loads(description.asked or "{}")})


def _to_fill(kind: type[Engine], where: str, description: Description) -> Engine:
    """The collection that is there, if these vectors are of its kind; else a new one."""
    if not kind.exists(where):
        return kind.pending(where, description)
    engine = kind.open(where)
    old = engine.description
    names = ("model_sha256", "similarity", "dimensions", "prompt", "asked", "chunking")
    if all(getattr(old, name) == getattr(description, name) for name in names):
        fresh = replace(description, fields=old.fields)
        if fresh != old:  # another name of the same model
            engine.describe(fresh)
        return engine
    engine.close()
    return kind.pending(where, description)


def _ids(ids: Sequence[str]) -> list[str]:
    if isinstance(ids, str) or not all(isinstance(each, str) for each in ids):
        raise InputError(f"ids is {ids!r:.60}, expected a list of strings")
    for each in ids:
        if each.encode(errors="ignore").decode() != each:
            raise InputError(f"ids: {each!r:.60} is not valid Unicode")
    return list(ids)
