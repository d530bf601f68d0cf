"""The engine on this machine: LanceDB in a folder, which `lance_folder` describes.

N texts, Q queries, K found, E numbers a vector, T tokens.
"""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import filelock
import numpy as np

from polyvec.errors import CompactionWarning, IndexStoreError, MissingExtraError
from polyvec.index.engines.checks import check_query, check_rows, form_of
from polyvec.index.engines.interface import Candidate, Description, Engine, Form, Rows
from polyvec.index.engines.scoring import METRICS, similarities
from polyvec.index.filters import Filter
from polyvec.index.folder import LOCK, MANIFEST, STORED
from polyvec.interfaces import DenseVectors, Vectors
from polyvec.storage.files import as_path, atomic_file

# Its warnings are of the normal course of things, such as a table that is yet to be made.
os.environ.setdefault("LANCEDB_LOG", "error")
try:
    import lancedb  # noqa: F401
    import pyarrow as pa
    from lancedb.index import FTS, BTree
    from lancedb.query import MatchQuery
except ImportError:
    raise MissingExtraError(
        "lancedb", "index", "an index of this kind (plain files need none: --plain)"
    ) from None
from polyvec.index.engines import lance_ann as ann
from polyvec.index.engines import lance_rows as arrow
from polyvec.index.engines.lance_folder import (
    Stored,
    check_folder,
    connect,
    errors,
    open_table,
)

ANN_ROWS = 20_000  # below, all vectors are compared: as quick as an index, and exact
GROWTH = 2  # the vector index is trained again when the table has grown so many times
MAX_FRAGMENTS = 20  # files of rows, one more for each write; queries slow down with their number
# Parts of the vector index, one more for each compaction. Lance never joins them, nor the files of
# rows that are in different parts; each is read by every query. Beyond so many, and one more for
# SEGMENT_ROWS rows, the index is made anew: 5 CPU seconds at 25,000 rows.
MAX_SEGMENTS, SEGMENT_ROWS = 8, 50_000
MAX_FRAGMENTS_INSIDE = 400  # the same inside `writing`, whose end brings it down to one
# Rows that are not in the index of words yet are read by every query of words: 5,000 of them made
# one take 265 ms in place of 4.
WORD_ROWS = 1000
KEPT_S = 60  # versions of the table that readers may still use are kept so long
BATCH = 1024
IDS = 500  # in one condition
T = TypeVar("T")


class LanceEngine(Engine):
    """Rows in a folder; words are lower-cased, stemmed, and without English stop words.

    The cosine of a vector of zeros is undefined: `near` does not find it.
    """

    name = "lance"
    forms: ClassVar[frozenset[Form]] = frozenset({"dense", "sparse", "multi"})  # type: ignore[misc]
    has_words = True

    def __init__(self, folder: Path, stored: Stored, table: Any, *, pending: bool = False) -> None:
        self.folder, self._stored, self._table, self._pending = folder, stored, table, pending
        self._lock = filelock.FileLock(folder / LOCK, timeout=0)
        self._depth = 0  # of `writing` within `writing`

    # ---- open and close -------------------------------------------------------------------------

    @classmethod
    def create(cls, where: str, description: Description) -> Self:
        folder = as_path(where, "folder")
        if Stored.read(folder) is not None or (folder / MANIFEST).exists():
            raise IndexStoreError(f"{folder}: contains an index already; open it, or delete it")
        engine = cls.pending(where, description)
        with engine.writing():
            if engine.count():  # of a build that was killed
                with errors(folder):
                    engine._table.delete("true")
            engine.publish()
        return engine

    @classmethod
    def exists(cls, where: str) -> bool:
        return Stored.read(as_path(where, "folder")) is not None

    @classmethod
    def open(cls, where: str) -> Self:
        folder = as_path(where, "folder")
        stored = Stored.read(folder)
        if stored is None:
            raise IndexStoreError(
                f"{folder}: contains no index; build one with: polyvec index {folder} FILE"
            )
        return cls(folder, stored, open_table(folder, stored.table))

    @classmethod
    def pending(cls, where: str, description: Description) -> Self:
        """A collection beside the folder's own one, which `publish` puts in its place.

        It holds what an interrupted process wrote into one of the same vectors.
        """
        folder = as_path(where, "folder")
        check_folder(folder)
        made = replace(description, fields={}, model="", scale="", attention="", options="")
        key = hashlib.sha256(json.dumps(made.as_dict(), sort_keys=True).encode()).hexdigest()
        stored = Stored(description, f"texts-{key[:16]}")
        with errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        engine = cls(folder, stored, None, pending=True)
        with engine._locked(), errors(folder):
            engine._table = engine._made()
        return engine

    def _made(self) -> Any:
        """The table, with the columns of the description and indexes of ids and words."""
        database, name = connect(self.folder), self._stored.table
        if (self.folder / f"{name}.lance").exists():
            # Whatever a killed process left that is not complete is made again.
            with contextlib.suppress(Exception):
                self._table = database.open_table(name)
                indexed = {each for one in self._table.list_indices() for each in one.columns}
                if indexed >= {"id", "content", "text"}:
                    self._add_columns(self._stored.description)
                    return self._table
        wanted = arrow.schema(self._stored.description)
        table = database.create_table(name, schema=wanted, mode="overwrite")
        table.create_index("id", config=BTree())
        table.create_index("content", config=BTree())
        table.create_index("text", config=FTS())
        return table

    def publish(self) -> None:
        """Put a pending collection in the place of the folder's own one."""
        with self.writing():
            self._pending = False
            self._store(self._stored)
            for path in self.folder.glob("texts-*.lance"):
                if path.name != f"{self._stored.table}.lance":
                    shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        self._lock.release(force=True)

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def description(self) -> Description:
        self._refresh()
        return self._stored.description

    def describe(self, description: Description) -> None:
        with self.writing(), errors(self.folder):
            self._add_columns(description)
            # After the columns: whoever reads the description finds them.
            self._store(replace(self._stored, description=description))

    def _add_columns(self, description: Description) -> None:
        known = self._table.schema
        for name, kind in description.fields.items():
            field = arrow.field_of(name, kind)
            stale = field.name in known.names and known.field(field.name).type != field.type
            if stale:  # of a process that was killed before it described the column: all null
                self._table.drop_columns([field.name])
            if stale or field.name not in known.names:
                self._table.add_columns(pa.schema([field]))

    def _store(self, stored: Stored) -> None:
        self._stored = stored
        if not self._pending:
            with errors(self.folder), atomic_file(self.folder / STORED, "w") as file:
                file.write(stored.as_json())

    def _refresh(self) -> None:
        """Follow another process that changed the description or replaced the table."""
        if self._pending or self._depth:
            return
        stored = Stored.read(self.folder)
        if stored is None:
            raise IndexStoreError(f"{self.folder}: the index is gone")
        if stored.table != self._stored.table:
            self._table = open_table(self.folder, stored.table)
        self._stored = stored

    # ---- write ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, no other process can write; at the end the table is compacted if it is time."""
        with self._locked():
            if not self._depth:
                self._refresh()
            self._depth += 1
            try:
                yield
                self._compact_if(last=self._depth == 1)
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise IndexStoreError(
                f"{self.folder}: another process is writing this index; wait until it is done"
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    def upsert(self, rows: Rows) -> None:
        with self.writing(), errors(self.folder):
            check_rows(rows, self._stored.description)
            if len(rows):
                merge = self._table.merge_insert("id")
                merge.when_matched_update_all().when_not_matched_insert_all().execute(
                    arrow.to_arrow(rows, self._stored.description)
                )

    def delete(self, ids: Sequence[str]) -> int:
        found = 0
        with self.writing(), errors(self.folder):
            for part in _parts(list(ids)):
                found += self._table.delete(arrow.is_in("id", part)).num_deleted_rows
        return found

    def optimize(self) -> None:
        with self.writing():
            self._optimize(timedelta(0))

    def _compact_if(self, *, last: bool) -> None:
        """Lance never compacts by itself: 500 writes of one row made a query ten times as slow."""
        try:
            self._compact_late(last)
        except IndexStoreError as error:
            # No error of the write, which is stored: a full disk, mostly.
            warnings.warn(f"{error} (all is written, but not compacted)", CompactionWarning, 3)

    def _compact_late(self, last: bool) -> None:
        with errors(self.folder):
            stats = self._table.stats()
            indexed = self._num_indexed()
            # New rows are searched without the vector index until they are in it. Only at the end:
            # a long addition would train it again at every doubling.
            late = last and stats["num_rows"] - indexed >= max(ANN_ROWS, indexed // 4)
            most = MAX_FRAGMENTS if last else MAX_FRAGMENTS_INSIDE
            if (
                stats["fragment_stats"]["num_fragments"] > most
                or (ann.is_possible(self._stored.description) and late)
                or (last and self._num_without_words() >= WORD_ROWS)
            ):
                self._optimize(timedelta(seconds=KEPT_S))

    def _optimize(self, kept: timedelta) -> None:
        with errors(self.folder), warnings.catch_warnings():
            # It warns that readers of older versions fail; ours read again.
            warnings.simplefilter("ignore")
            rows = self._table.count_rows()
            if ann.is_possible(self._stored.description) and rows >= max(
                ANN_ROWS, GROWTH * self._stored.trained_rows
            ):
                self._train(rows)
            elif self._num_segments() > MAX_SEGMENTS + rows // SEGMENT_ROWS:
                self._make_index(rows)
            # Unverified files are those of writers that were killed: the lock says that none runs.
            self._table.optimize(cleanup_older_than=kept, delete_unverified=True)

    def _train(self, rows: int) -> None:
        """Make the vector index, and find settings with which it gives what exact search gives."""
        self._make_index(rows)
        made = self._stored.description
        places = np.random.default_rng(rows).choice(rows, min(ann.SAMPLE, rows), replace=False)
        search = self._table.take_offsets(places.tolist()).select(["id", "dense"])
        sample = search.to_arrow()
        queries = arrow.vectors_of(sample, "dense", made.dimensions["dense"])

        def nearest(settings: tuple[int, int]) -> list[list[str]]:
            nprobes, refine = settings
            self._stored = replace(self._stored, trained_rows=rows, nprobes=nprobes, refine=refine)
            return [[each.id for each in one] for one in self.near(queries, ann.NEAREST + 1)]

        nprobes, refine = ann.settings(nearest, sample.column("id").to_pylist())
        self._store(replace(self._stored, nprobes=nprobes, refine=refine))

    def _make_index(self, rows: int) -> None:
        config = ann.config(self._stored.description, rows)
        self._table.create_index("dense", config=config, replace=True)
        self._store(replace(self._stored, trained_rows=rows))

    def _num_segments(self) -> int:
        stats = self._table.index_stats("dense_idx") if self._stored.trained_rows else None
        return stats.num_indices or 0 if stats else 0

    def _num_indexed(self) -> int:
        stats = self._table.index_stats("dense_idx") if self._stored.trained_rows else None
        return stats.num_indexed_rows if stats else 0

    def _num_without_words(self) -> int:
        stats = self._table.index_stats("text_idx")
        return stats.num_unindexed_rows if stats else 0

    # ---- read -----------------------------------------------------------------------------------

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> Rows:
        self._refresh()
        made, places = self._stored.description, {each: at for at, each in enumerate(ids)}
        columns = self._columns(vectors)
        tables = [
            self._read(self._table.search().where(arrow.is_in("id", part)).select(columns).to_arrow)
            for part in _parts(list(places))
        ]
        table = pa.concat_tables(tables) if tables else self._none().select(columns)
        order = np.argsort([places[each] for each in table.column("id").to_pylist()], kind="stable")
        return arrow.from_arrow(table.take(order), made, str(self.folder), vectors=vectors)

    def find_texts(self, texts: Sequence[str]) -> Rows:
        self._refresh()
        wanted = {arrow.content(text): text for text in texts}
        found: dict[str, str] = {}
        for part in _parts(list(wanted)):
            query = self._table.search().where(arrow.is_in("content", part)).select(["id", "text"])
            table = self._read(query.to_arrow)
            pairs = zip(*(table.column(name).to_pylist() for name in ("text", "id")), strict=True)
            found |= {text: name for text, name in pairs if wanted[arrow.content(text)] == text}
        return self.get(list(found.values()), vectors=True)

    def count(self, filter: Filter | None = None) -> int:
        self._refresh()
        condition = self._condition(filter)
        return int(self._read(lambda: self._table.count_rows(condition)))

    def near(
        self,
        queries: Vectors,
        k: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[list[Candidate]]:
        self._refresh()
        made = self._stored.description
        check_query(queries, k, made)
        if not isinstance(queries, DenseVectors) or made.similarity not in METRICS:
            return self._scanned(queries, k, filter)
        found = []
        for query_E in queries.values_NE:
            search = self._table.search(query_E, vector_column_name="dense")
            search = search.distance_type(METRICS[made.similarity]).limit(k)
            if exact or not self._stored.nprobes:
                search = search.bypass_vector_index()
            else:
                search = search.nprobes(self._stored.nprobes).refine_factor(self._stored.refine)
            rows = self._rows(search, filter)
            # Computed again from what was stored: the library's distance is of another scale, and
            # of an index without refinement an estimate.
            query = DenseVectors(query_E[None])
            (scores_N,) = similarities(query, rows.vectors["dense"], made.similarity)
            order = np.argsort(-scores_N, kind="stable")
            found.append(_candidates(rows, order.tolist(), scores_N[order].tolist()))
        return found

    def _scanned(self, queries: Vectors, k: int, filter: Filter | None) -> list[list[Candidate]]:
        """Exactly, by all rows in batches; of sparse vectors those that share no term are none."""
        made, form = self._stored.description, form_of(queries)
        best_scores = np.empty((len(queries), 0), np.float32)
        best_ids = np.empty((len(queries), 0), object)
        columns = ["id", *arrow.vector_columns([form])]
        for batch in self._batches(columns, filter):
            vectors = arrow.vectors_of(batch, form, queries.dimension)
            scores_QN = np.hstack([best_scores, similarities(queries, vectors, made.similarity)])
            ids = np.array(batch.column("id").to_pylist(), object)
            ids_QN = np.hstack([best_ids, np.broadcast_to(ids, (len(queries), len(ids)))])
            order = np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
            best_scores = np.take_along_axis(scores_QN, order, axis=1)
            best_ids = np.take_along_axis(ids_QN, order, axis=1)
        found = []
        for scores_K, ids_K in zip(best_scores, best_ids, strict=True):
            keep = scores_K > 0 if form == "sparse" else np.ones(len(scores_K), bool)
            score_of = dict(zip(ids_K[keep].tolist(), scores_K[keep].tolist(), strict=True))
            rows = self.get(list(score_of), vectors=True)
            scores = [score_of[each] for each in rows.ids]
            found.append(_candidates(rows, range(len(rows)), scores))
        return found

    def words(
        self, queries: Sequence[str], k: int, *, filter: Filter | None = None
    ) -> list[list[Candidate]]:
        self._refresh()
        found = []
        for query in queries:
            if filter is not None and self._num_without_words():
                score_of = dict(self._matches(query, self._condition(filter) or "true", k))
                rows = self.get(list(score_of), vectors=True)
                scores = [score_of[each] for each in rows.ids]
            else:
                scores = []
                rows = self._rows(self._match(query).limit(k), filter, scores)
            found.append(_candidates(rows, range(len(rows)), scores))
        return found

    def term_scores(self, terms: Sequence[str], ids: Sequence[str]) -> list[dict[str, float]]:
        self._refresh()
        found: list[dict[str, float]] = [{} for _ in ids]
        place_of = {name: place for place, name in enumerate(ids)}
        for term in terms:
            for name, score in self._matches(term, arrow.is_in("id", ids), len(ids)):
                found[place_of[name]][term] = score
        return found

    def _match(self, query: str) -> Any:
        # Not the string itself, in which quotes and operators have a meaning.
        match = MatchQuery(query, "text")  # type: ignore[call-arg] # mypy sees no defaults
        return self._table.search(match, query_type="fts")

    def _matches(self, query: str, condition: str, k: int) -> list[tuple[str, float]]:
        """Ids of rows that share words and fit the condition, with their scores, best first.

        Of rows that are not in its index of words yet, Lance counts how rare a word is among those
        that a prefilter lets through; so while there are such, the filter comes after the scores.
        """
        late = self._num_without_words() > 0
        search = self._match(query).limit(max(self._table.count_rows(), 1) if late else k)
        search = search.where(condition, prefilter=not late).select(["id", "_score"])
        table = self._read(search.to_arrow)
        columns = (table.column(name).to_pylist() for name in ("id", "_score"))
        return list(zip(*columns, strict=True))[:k]

    def scan(self, *, batch_size: int = BATCH, vectors: bool = True) -> Iterator[Rows]:
        self._refresh()
        made = self._stored.description
        for batch in self._batches(self._columns(vectors), None, batch_size):
            yield arrow.from_arrow(batch, made, str(self.folder), vectors=vectors)

    def _rows(self, search: Any, filter: Filter | None, scores: list[float] | None = None) -> Rows:
        """What a search finds, in its order; `scores` gets those of words."""
        search = search.select([*self._columns(True), "_distance" if scores is None else "_score"])
        condition = self._condition(filter)
        if condition is not None:
            search = search.where(condition, prefilter=True)
        table = self._read(search.to_arrow)
        if scores is not None:
            scores += table.column("_score").to_pylist()
        return arrow.from_arrow(table, self._stored.description, str(self.folder), vectors=True)

    def _batches(
        self, columns: list[str], filter: Filter | None, batch_size: int = BATCH
    ) -> Iterator[pa.RecordBatch]:
        search = self._table.search().select(columns)
        condition = self._condition(filter)
        if condition is not None:
            search = search.where(condition)
        with errors(self.folder):
            yield from search.to_batches(batch_size)

    def _read(self, read: Any) -> Any:
        """What a reading function gives; again, if a writer has cleared the version it read."""
        try:
            return read()
        except Exception:  # noqa: BLE001 - the library has no error of its own for this
            with errors(self.folder):
                self._table.checkout_latest()
                return read()

    def _columns(self, vectors: bool) -> list[str]:
        made = self._stored.description
        stored = ["crc32", *arrow.vector_columns(list(made.dimensions))] if vectors else []
        return ["id", "text", *stored, *(arrow.FIELD + name for name in made.fields)]

    def _condition(self, filter: Filter | None) -> str | None:
        return None if filter is None else arrow.sql(filter, self._stored.description.fields)

    def _none(self) -> pa.Table:
        return arrow.schema(self._stored.description).empty_table()


def _parts(values: list[T]) -> Iterator[list[T]]:
    return (values[start : start + IDS] for start in range(0, len(values), IDS))


def _candidates(rows: Rows, order: Sequence[int], scores: Sequence[float]) -> list[Candidate]:
    return [
        Candidate(rows.ids[row], score, rows.texts[row], rows.metadata[row])
        for row, score in zip(order, scores, strict=True)
    ]
