"""Qdrant: qdrant://host:port/collection, qdrant+https://..., or qdrant:///folder/collection

N texts, Q queries, K found, E numbers a vector.

The vectors of a row are named dense, sparse and multi (MaxSim); a fourth, words, holds BM25's
weights of the words of its text, in any script, without stemming and stop words. A key comes from
QDRANT_API_KEY. Options of the URL, when a collection is made: `quantization=int8` or `binary`
(searched in memory, then scored again with the whole vectors).

The last form keeps a collection in a folder, with the client's own local mode: for tests and up
to some 20,000 texts, since it compares all of them. It stores points with pickle, so open only
folders that you trust. It writes a batch point by point; so that no half of one is left after a
kill, the batch is first written to a file of ours and finished when the folder is next opened.
"""

import contextlib
import functools
import json
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from polyvec.errors import IndexStoreError, InputError, MissingExtraError, PolyvecError
from polyvec.index.engines.checks import check_query, check_rows, form_of
from polyvec.index.engines.interface import Candidate, Description, Engine, Form, Rows
from polyvec.index.engines.places import (
    OPEN_S,
    WRITE_S,
    Place,
    check_storable,
    one_line,
    retried,
    storable,
)
from polyvec.index.filters import Filter
from polyvec.interfaces import Vectors
from polyvec.storage.files import atomic_file

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
except ImportError:
    raise MissingExtraError("qdrant-client", "qdrant", "an index in Qdrant") from None
from polyvec.index.engines import qdrant_points as convert

T = TypeVar("T")
DISTANCES = {
    "cosine": models.Distance.COSINE,
    "dot": models.Distance.DOT,
    "euclidean": models.Distance.EUCLID,
    "manhattan": models.Distance.MANHATTAN,
}
KINDS = {
    "text": models.PayloadSchemaType.KEYWORD,
    "int": models.PayloadSchemaType.INTEGER,
    "float": models.PayloadSchemaType.FLOAT,
    "bool": models.PayloadSchemaType.BOOL,
}
META = "polyvec"  # the key of the description among a collection's metadata
KEY = "QDRANT_API_KEY"
PORT, CONNECT_S, REQUEST_S = 6333, 5.0, 60
HNSW_EF = 128
OVERSAMPLING = 3.0  # candidates of quantized vectors that are scored again, for each that is asked
BUSY = (429, 500, 502, 503, 504)
NEEDED = (1, 16)  # the first server that keeps metadata of a collection
BATCH = 1024


class QdrantEngine(Engine):
    """Rows as points. An upsert of more than 16 MiB is sent in requests that are whole each."""

    name = "qdrant"
    forms: ClassVar[frozenset[Form]] = frozenset({"dense", "sparse", "multi"})  # type: ignore[misc]
    has_words = True

    def __init__(self, where: str, *, create: bool = False) -> None:
        self.place = _place(where)
        self._folder = None if self.place.host else Path(self.place.path or "/")
        if self._folder is not None and not create and not (self._folder / "meta.json").is_file():
            raise IndexStoreError(f"{self.place.url}: the folder contains no index of Qdrant")
        with self._errors():
            self._client = self._local() if self._folder else self._remote()

    def _local(self) -> QdrantClient:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more than 20,000 points; the docs say so
            return QdrantClient(path=str(self._folder), force_disable_check_same_thread=True)

    def _remote(self) -> QdrantClient:
        place, secure = self.place, self.place.scheme.endswith("+https")
        port = place.port or PORT

        def reach() -> None:
            socket.create_connection((place.host, port), CONNECT_S).close()

        # The client would wait REQUEST_S for a host that does not answer.
        retried(reach, lambda error: isinstance(error, ConnectionError), OPEN_S)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a key without TLS, as between containers
            return QdrantClient(
                url=f"{'https' if secure else 'http'}://{_bracketed(place.host)}:{port}",
                prefix=place.path.strip("/") or None,
                api_key=os.environ.get(KEY) or None,
                timeout=REQUEST_S,
                check_compatibility=False,
            )

    # ---- open and close -------------------------------------------------------------------------

    @classmethod
    def create(cls, where: str, description: Description) -> Self:
        _check_similarity(description)
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
            engine._settle()
        except BaseException:
            engine.close()
            raise
        return engine

    @classmethod
    def exists(cls, where: str) -> bool:
        place = _place(where)
        if not place.host and not (Path(place.path or "/") / "meta.json").is_file():
            return False
        engine = cls(where)
        try:
            return engine._call(lambda: engine._client.collection_exists(place.name), OPEN_S)
        finally:
            engine.close()

    def _create(self, made: Description) -> None:
        name = self.place.name
        if self._folder is None:
            version = self._call(lambda: self._client.info().version, OPEN_S)
            if tuple(map(int, version.split("-")[0].split(".")[:2])) < NEEDED:
                raise IndexStoreError(
                    f"{self.place.url}: Qdrant {version}, 1.16 or newer is needed; upgrade it"
                )
        if self._call(lambda: self._client.collection_exists(name), OPEN_S):
            raise IndexStoreError(
                f"{self.place.url}: the collection exists already; delete it, or give another name"
            )
        distance = DISTANCES[made.similarity]
        max_sim = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        self._call(
            lambda: self._client.create_collection(
                name,
                vectors_config={
                    form: models.VectorParams(
                        size=width,
                        distance=distance,
                        multivector_config=max_sim if form == "multi" else None,
                    )
                    for form, width in made.dimensions.items()
                    if form != "sparse"
                },
                sparse_vectors_config={
                    convert.WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF),
                    **(
                        {"sparse": models.SparseVectorParams()}
                        if "sparse" in made.dimensions
                        else {}
                    ),
                },
                quantization_config=self._quantization(),
                metadata={META: json.dumps(made.as_dict())},
            )
        )
        self._index_fields(made)

    def _quantization(self) -> Any:
        match self.place.choice("quantization", ("none", "int8", "binary"), "none"):
            case "int8":
                kind = models.ScalarType.INT8
                scalar = models.ScalarQuantizationConfig(type=kind, quantile=0.99, always_ram=True)
                return models.ScalarQuantization(scalar=scalar)
            case "binary":
                binary = models.BinaryQuantizationConfig(always_ram=True)
                return models.BinaryQuantization(binary=binary)
        return None

    def _index_fields(self, made: Description) -> None:
        if self._folder is not None:  # the local mode has none
            return
        for field, kind in made.fields.items():
            make = functools.partial(
                self._client.create_payload_index,
                self.place.name,
                f"fields.{field}",
                field_schema=KINDS[kind],
                wait=True,
            )
            self._call(make)

    def close(self) -> None:
        self._client.close()

    # ---- calls ----------------------------------------------------------------------------------

    def _call(self, call: Callable[[], T], within_s: float = WRITE_S) -> T:
        """What the client gives, tried again while the server is busy or cannot be reached."""
        with self._errors():
            return retried(call, _is_passing, within_s)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        url = self.place.url
        try:
            yield
        except PolyvecError:
            raise
        except UnexpectedResponse as error:
            if error.status_code in (401, 403):
                told = f"{url}: the server refused the key; set {KEY}"
            elif error.status_code == 404:
                told = f"{url}: the server has no such collection; build it with: polyvec index"
            else:
                body = (error.content or b"").decode(errors="replace")
                told = f"{url}: refused with status {error.status_code}: {one_line(body)}"
            raise IndexStoreError(told) from None
        except (ResponseHandlingException, ResourceExhaustedResponse, OSError) as error:
            raise IndexStoreError(f"{url}: cannot be reached: {one_line(error)}") from None
        except Exception as error:  # noqa: BLE001 - the local mode raises whatever it meets
            told = str(error)
            if self._folder is not None and "already accessed" in told:
                told = "another process has the folder open; close it, or use a server"
            elif "not found" in told:
                told = "there is no such collection; build it with: polyvec index"
            raise IndexStoreError(f"{url}: {one_line(told)}") from None

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def description(self) -> Description:
        found = self._call(lambda: self._client.get_collection(self.place.name), OPEN_S)
        stored = (found.config.metadata or {}).get(META)
        if not isinstance(stored, str):
            raise IndexStoreError(
                f"{self.place.url}: a collection of another program; give another name"
            )
        return Description.parse(stored, self.place.url)

    def describe(self, description: Description) -> None:
        metadata = {META: json.dumps(description.as_dict())}
        self._call(lambda: self._client.update_collection(self.place.name, metadata=metadata))
        self._index_fields(description)

    # ---- write ----------------------------------------------------------------------------------

    def upsert(self, rows: Rows) -> None:
        made = self.description
        check_rows(rows, made)
        check_storable(rows, "Qdrant")
        for part in convert.requests(convert.points(rows, made), made):
            with self._whole({"upsert": [each.model_dump(mode="json") for each in part]}):
                self._upsert(part)

    def _upsert(self, points: list[models.PointStruct]) -> None:
        self._call(lambda: self._client.upsert(self.place.name, points, wait=True))

    def delete(self, ids: Sequence[str]) -> int:
        wanted = [convert.point_id(each) for each in storable(ids)]
        if not wanted:
            return 0
        found = self._call(
            lambda: self._client.retrieve(self.place.name, wanted, with_payload=False)
        )
        there = [each.id for each in found]
        if there:
            with self._whole({"delete": there}):
                self._delete(there)
        return len(there)

    def _delete(self, ids: list[Any]) -> None:
        selector = models.PointIdsList(points=ids)
        self._call(lambda: self._client.delete(self.place.name, selector, wait=True))

    @property
    def _journal(self) -> Path | None:
        return self._folder and self._folder / f"{self.place.name}.polyvec.json"

    @contextlib.contextmanager
    def _whole(self, write: dict[str, Any]) -> Iterator[None]:
        """Inside, a write of the local mode is finished by `_settle` if this process dies."""
        if self._journal is None:  # a server has a log of its own
            yield
            return
        with atomic_file(self._journal, "w") as file:
            json.dump(write, file)
        yield
        self._journal.unlink()

    def _settle(self) -> None:
        """Finish the write that a killed process left."""
        if self._journal is None or not self._journal.is_file():
            return
        write = json.loads(self._journal.read_text("utf-8"))
        if "upsert" in write:
            self._upsert([models.PointStruct(**each) for each in write["upsert"]])
        else:
            self._delete(write["delete"])
        self._journal.unlink()

    def optimize(self) -> None:
        """Nothing: a server does so itself, and the local mode has no indexes."""

    # ---- read -----------------------------------------------------------------------------------

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> Rows:
        made = self.description
        forms = tuple(made.dimensions) if vectors else ()
        wanted = [convert.point_id(each) for each in storable(ids)]
        found = self._call(
            lambda: self._client.retrieve(self.place.name, wanted, with_vectors=list(forms))
        )
        order = {each: at for at, each in enumerate(wanted)}
        found.sort(key=lambda each: order[str(each.id)])
        return convert.rows_of(found, made, forms)

    def count(self, filter: Filter | None = None) -> int:
        asked = convert.filter_of(filter, self.description)
        return self._call(lambda: self._client.count(self.place.name, asked, exact=True)).count

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
        form: Form = form_of(queries)
        # The local mode is exact, and warns of parameters.
        params = (
            None
            if self._folder
            else models.SearchParams(
                exact=exact,
                hnsw_ef=max(HNSW_EF, k),
                quantization=models.QuantizationSearchParams(
                    rescore=True, oversampling=OVERSAMPLING
                ),
            )
        )
        found = self._search(convert.queries_of(queries, made), form, k, filter, made, params)
        if form == "sparse":
            return [[each for each in one if each.score > 0] for one in found]
        if made.similarity in ("euclidean", "manhattan"):
            return [
                [Candidate(each.id, -each.score, each.text, each.metadata) for each in one]
                for one in found
            ]
        return found

    def words(
        self, queries: Sequence[str], k: int, *, filter: Filter | None = None
    ) -> list[list[Candidate]]:
        asked = [convert.words_query(each) for each in queries]
        return self._search(asked, convert.WORDS, k, filter, self.description, None)

    def _search(
        self,
        queries: Sequence[Any],
        using: str,
        k: int,
        filter: Filter | None,
        made: Description,
        params: models.SearchParams | None,
    ) -> list[list[Candidate]]:
        asked = convert.filter_of(filter, made)
        full = [at for at, each in enumerate(queries) if convert.is_full(each)]
        requests = [
            models.QueryRequest(
                query=queries[at],
                using=using,
                filter=asked,
                params=params,
                limit=k,
                with_payload=True,
            )
            for at in full
        ]
        answers = (
            self._call(lambda: self._client.query_batch_points(self.place.name, requests))
            if requests
            else []
        )
        found: list[list[Candidate]] = [[] for _ in queries]
        for at, answer in zip(full, answers, strict=True):
            found[at] = [
                Candidate(
                    point.payload["id"],
                    point.score,
                    point.payload["text"],
                    convert.fields_of(point.payload, made),
                )
                for point in answer.points
                if point.payload
            ]
        return found

    def scan(self, *, batch_size: int = BATCH, vectors: bool = True) -> Iterator[Rows]:
        made = self.description
        forms = tuple(made.dimensions) if vectors else ()
        scroll = functools.partial(
            self._client.scroll, self.place.name, limit=batch_size, with_vectors=list(forms)
        )
        found, offset = self._call(scroll)
        while found:
            yield convert.rows_of(found, made, forms)
            if offset is None:
                return
            found, offset = self._call(functools.partial(scroll, offset=offset))


def _place(where: str) -> Place:
    example = "qdrant://host:6333/collection or qdrant:///folder/collection"
    place = Place.read(where, KEY, example=example, named_by="/")
    place.check_options(("quantization",))
    return place


def _check_similarity(made: Description) -> None:
    if made.similarity not in DISTANCES:
        raise InputError(f"similarity {made.similarity!r}: Qdrant has {', '.join(DISTANCES)}")
    if made.similarity not in ("cosine", "dot") and set(made.dimensions) - {"dense"}:
        raise InputError(
            f"similarity {made.similarity!r}: Qdrant has it of dense vectors only; sparse and "
            "multi-vectors take cosine or dot"
        )


def _is_passing(error: Exception) -> bool:
    if isinstance(error, UnexpectedResponse):
        return error.status_code in BUSY
    return isinstance(error, ResponseHandlingException | ResourceExhaustedResponse)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
