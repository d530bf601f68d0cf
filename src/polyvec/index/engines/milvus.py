"""Milvus: milvus://host:port#collection, milvus+https://..., or milvus:///folder/file.db#collection

N texts, Q queries, K found, E numbers a vector.

The last form is milvus-lite, which keeps a collection in a folder of that name and runs in this
process; one process at a time has it open. Words are ranked by Milvus's own BM25. A token
("user:password", or a key) comes from MILVUS_TOKEN. Multi-vectors cannot be stored.
"""

import contextlib
import json
import logging
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from polyvec.errors import IndexStoreError, InputError, MissingExtraError, PolyvecError
from polyvec.index.engines import milvus_rows as convert
from polyvec.index.engines.checks import check_query, check_rows, typed
from polyvec.index.engines.interface import Candidate, Description, Engine, Form, Rows
from polyvec.index.engines.places import OPEN_S, Place, check_storable, one_line, retried, storable
from polyvec.index.engines.scoring import similarities
from polyvec.index.filters import Filter
from polyvec.interfaces import DenseVectors, SparseVectors, Vectors

try:
    from pymilvus import DataType, Function, FunctionType, MilvusClient
    from pymilvus.exceptions import MilvusException
except ImportError:
    raise MissingExtraError("pymilvus", "milvus", "an index in Milvus") from None

# They print what they raise as well, with tracebacks.
for _name in ("pymilvus", "milvus_lite", "grpc._server"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

T = TypeVar("T")
META = "polyvec"  # the property of a collection with its description
TOKEN = "MILVUS_TOKEN"
EXAMPLE = "milvus://host:19530#collection or milvus:///folder/file.db#collection"
PORT, CONNECT_S, CALL_S = 19530, 5.0, 60.0
MOST_FOUND = 16_384  # results of one search
EF = 256  # candidates of an HNSW search on a server
REQUEST_BYTES = 16 * 2**20  # a server refuses requests of more than 64 MiB
BATCH = 1024
OPENED: Counter[str] = Counter()  # engines of this process with a file open, by its path
LOCK = threading.Lock()


class MilvusEngine(Engine):
    """Rows as entities. An upsert of more than 16 MiB is sent in requests that are whole each."""

    name = "milvus"
    forms: ClassVar[frozenset[Form]] = frozenset({"dense", "sparse"})  # type: ignore[misc]
    has_words = True

    def __init__(self, where: str, *, create: bool = False) -> None:
        self.place = Place.read(where, TOKEN, example=EXAMPLE)
        self.place.check_options(())
        if "-" in self.place.name:
            raise InputError(f"{self.place.url}: a name in Milvus has no hyphen; use _")
        self._file = None if self.place.host else self.place.path
        if self._file is not None and not self._file.endswith(".db"):
            raise InputError(f"{self.place.url}: a file of Milvus ends in .db; expected {EXAMPLE}")
        if self._file is not None and not create and not Path(self._file).exists():
            raise IndexStoreError(f"{self.place.url}: there is no such file")
        with self._errors():
            self._client = self._connect()

    def _connect(self) -> MilvusClient:
        place = self.place
        if self._file is not None:
            Path(self._file).parent.mkdir(parents=True, exist_ok=True)
            with LOCK:
                client = MilvusClient(self._file, timeout=CALL_S)
                OPENED[self._file] += 1
            return client
        port = place.port or PORT

        def reach() -> None:
            socket.create_connection((place.host, port), CONNECT_S).close()

        # The client would try for a minute.
        retried(reach, lambda error: isinstance(error, ConnectionError), OPEN_S)
        scheme = "https" if place.scheme.endswith("+https") else "http"
        host = f"[{place.host}]" if ":" in place.host else place.host
        token = os.environ.get(TOKEN, "")
        return MilvusClient(f"{scheme}://{host}:{port}", token=token, timeout=OPEN_S)

    # ---- open and close -------------------------------------------------------------------------

    @classmethod
    def create(cls, where: str, description: Description) -> Self:
        convert.check_similarity(description)
        engine = cls(where, create=True)
        try:
            engine._create(description)
        except BaseException:
            engine.close()
            raise
        return engine

    @classmethod
    def open(cls, where: str) -> Self:
        engine = cls(where)
        try:
            _ = engine.description
            engine._call(engine._client.load_collection)
        except BaseException:
            engine.close()
            raise
        return engine

    @classmethod
    def exists(cls, where: str) -> bool:
        place = Place.read(where, TOKEN, example=EXAMPLE)
        if not place.host and not Path(place.path).exists():
            return False
        engine = cls(where)
        try:
            return engine._call(engine._client.has_collection)
        finally:
            engine.close()

    def _create(self, made: Description) -> None:
        if self._call(self._client.has_collection):
            raise IndexStoreError(
                f"{self.place.url}: the collection exists already; delete it, or give another name"
            )
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=convert.ID_BYTES)
        schema.add_field(
            "text", DataType.VARCHAR, max_length=convert.TEXT_BYTES, enable_analyzer=True
        )
        schema.add_field("fields", DataType.JSON)
        schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
        bm25 = Function("bm25", FunctionType.BM25, ["text"], ["words"])
        schema.add_function(bm25)
        index = self._client.prepare_index_params()
        index.add_index("words", "SPARSE_INVERTED_INDEX", metric_type="BM25")
        if "dense" in made.dimensions:
            schema.add_field("dense", DataType.FLOAT_VECTOR, dim=made.dimensions["dense"])
            # milvus-lite's HNSW found 0.67 of what passes a filter, and its searches of all rows
            # are as quick: most of their time is spent elsewhere.
            kind = "FLAT" if self._file is not None else "HNSW"
            params = {} if kind == "FLAT" else {"M": 16, "efConstruction": 200}
            metric = convert.METRICS[made.similarity]
            index.add_index("dense", kind, metric_type=metric, params=params)
        if "sparse" in made.dimensions:
            schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
            schema.add_field("sparse_length", DataType.DOUBLE)
            index.add_index("sparse", "SPARSE_INVERTED_INDEX", metric_type="IP")
        self._call(
            self._client.create_collection,
            schema=schema,
            index_params=index,
            consistency_level="Strong",  # whoever has written reads what it wrote
            properties={META: json.dumps(made.as_dict())},
        )

    def close(self) -> None:
        self._client.close()
        if self._file is None:
            return
        from milvus_lite.server_manager import server_manager_instance

        with LOCK:
            OPENED[self._file] -= 1
            if not OPENED[self._file]:
                server_manager_instance.release_server(self._file)

    # ---- calls ----------------------------------------------------------------------------------

    def _call(self, method: Callable[..., T], **options: Any) -> T:
        """What the client's method gives; it tries again by itself until CALL_S."""
        with self._errors():
            return method(collection_name=self.place.name, timeout=CALL_S, **options)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        url = self.place.url
        try:
            yield
        except PolyvecError:
            raise
        except OSError as error:
            raise IndexStoreError(f"{url}: cannot be reached: {one_line(error)}") from None
        except MilvusException as error:
            told = one_line(error.message)
            if "Open local milvus failed" in told:
                told = "cannot be opened; is it open in another process, or of another program?"
            elif "auth" in told.lower():
                told = f"the server refused the token; set {TOKEN}"
            elif any(each in told for each in ("can't find collection", "not found", "not exist")):
                told = "there is no such collection; build it with: polyvec index"
            raise IndexStoreError(f"{url}: {told}") from None

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def description(self) -> Description:
        found = self._call(self._client.describe_collection)
        stored = (found.get("properties") or {}).get(META)
        if stored is None:
            raise IndexStoreError(
                f"{self.place.url}: a collection of another program; give another name"
            )
        # A server gives the property as it was written, milvus-lite has read it as JSON.
        if not isinstance(stored, str):
            return Description.read(stored, self.place.url)
        return Description.parse(stored, self.place.url)

    def describe(self, description: Description) -> None:
        properties = {META: json.dumps(description.as_dict())}
        self._call(self._client.alter_collection_properties, properties=properties)

    # ---- write ----------------------------------------------------------------------------------

    def upsert(self, rows: Rows) -> None:
        made = self.description
        check_rows(rows, made)
        check_storable(rows, "Milvus")
        convert.check_lengths(rows)
        metadata = typed(rows.metadata, made.fields)
        columns: dict[str, list[Any]] = {"id": [*rows.ids], "text": [*rows.texts]}
        columns["fields"] = list(metadata)
        for form, vectors in rows.vectors.items():
            columns |= convert.stored(form, vectors, made)
        entities = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        size = max(1, convert.bytes_of(rows) // max(1, len(rows)))
        step = max(1, REQUEST_BYTES // size)
        for start in range(0, len(entities), step):
            self._call(self._client.upsert, data=entities[start : start + step])

    def delete(self, ids: Sequence[str]) -> int:
        there = [each["id"] for each in self._entities(ids, ["id"])]
        if there:
            self._call(self._client.delete, ids=there)
        return len(there)

    def optimize(self) -> None:
        """Write what is in memory to files, whose indexes Milvus builds and merges by itself."""
        self._call(self._client.flush)

    # ---- read -----------------------------------------------------------------------------------

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> Rows:
        made = self.description
        found = self._entities(ids, convert.columns(made, vectors))
        places = {each: at for at, each in enumerate(ids)}
        found.sort(key=lambda each: places[each["id"]])
        return convert.rows_of(found, made, vectors)

    def _entities(self, ids: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
        wanted = storable(ids)
        if not wanted:
            return []
        return list(self._call(self._client.get, ids=wanted, output_fields=columns))

    def count(self, filter: Filter | None = None) -> int:
        asked = "" if filter is None else convert.expression(filter)
        found = self._call(self._client.query, filter=asked, output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def near(
        self,
        queries: Vectors,
        k: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[list[Candidate]]:
        made = self.description
        check_query(queries, k, made)
        if isinstance(queries, SparseVectors):
            asked = convert.sparse(queries, convert.lengths_of(queries, made))
            full = [at for at, each in enumerate(asked) if each]
            found: list[list[Candidate]] = [[] for _ in asked]
            answers = self._search([asked[at] for at in full], "sparse", "IP", k, filter, made)
            for at, answer in zip(full, answers, strict=True):
                found[at] = [each for each in answer if each.score > 0]
            return found
        assert isinstance(queries, DenseVectors)
        if exact and self._file is None:
            raise InputError(f"{self.place.url}: a server of Milvus has no exact search")
        values_QE = queries.values_NE.astype(np.float32)
        metric = convert.METRICS[made.similarity]
        found = self._search(values_QE.tolist(), "dense", metric, k, filter, made)
        if made.similarity != "euclidean":
            return found
        # A server gives squared distances, milvus-lite their roots.
        return [self._measured(one, queries, row) for row, one in enumerate(found)]

    def _measured(self, found: list[Candidate], queries: DenseVectors, row: int) -> list[Candidate]:
        stored = self.get([each.id for each in found], vectors=True)
        query = DenseVectors(queries.values_NE[row : row + 1])
        (scores_K,) = similarities(query, stored.vectors["dense"], "euclidean")
        return [
            Candidate(name, float(score), text, metadata)
            for name, score, text, metadata in zip(
                stored.ids, scores_K, stored.texts, stored.metadata, strict=True
            )
        ]

    def words(
        self, queries: Sequence[str], k: int, *, filter: Filter | None = None
    ) -> list[list[Candidate]]:
        made = self.description
        found: list[list[Candidate]] = [[] for _ in queries]
        # One without words is an error to Milvus.
        full = [at for at, each in enumerate(queries) if re.search(r"\w", each)]
        asked = [queries[at] for at in full]
        for at, answer in zip(
            full, self._search(asked, "words", "BM25", k, filter, made), strict=True
        ):
            # milvus-lite gives BM25 with a minus.
            found[at] = [
                Candidate(each.id, abs(each.score), each.text, each.metadata) for each in answer
            ]
        return found

    def _search(
        self,
        queries: list[Any],
        field: str,
        metric: str,
        k: int,
        filter: Filter | None,
        made: Description,
    ) -> list[list[Candidate]]:
        if not queries:
            return []
        params = {"ef": max(EF, k)} if field == "dense" and self._file is None else {}
        answers = self._call(
            self._client.search,
            data=queries,
            anns_field=field,
            limit=min(k, MOST_FOUND),
            filter="" if filter is None else convert.expression(filter),
            output_fields=convert.columns(made, False),
            search_params={"metric_type": metric, "params": params},
            consistency_level="Strong",
        )
        return [
            [
                Candidate(
                    hit["id"],
                    float(hit["distance"]),
                    hit["entity"]["text"],
                    convert.fields_of(hit["entity"], made),
                )
                for hit in hits
            ]
            for hits in answers
        ]

    def scan(self, *, batch_size: int = BATCH, vectors: bool = True) -> Iterator[Rows]:
        made = self.description
        iterator = self._call(
            self._client.query_iterator,
            batch_size=batch_size,
            filter="",
            output_fields=convert.columns(made, vectors),
            consistency_level="Strong",
        )
        try:
            while True:
                with self._errors():
                    found = iterator.next()
                if not found:
                    return
                yield convert.rows_of(found, made, vectors)
        finally:
            iterator.close()
