"""An index of texts on disk, searched exactly; `folder` has its files.

N texts, Q queries, E numbers a vector.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np

from polyvec.data.texts import Record
from polyvec.embed.encoding import check_texts
from polyvec.embed.projection.similarity import SIMILARITIES
from polyvec.errors import DamagedCacheWarning, IndexStoreError, InputError, ModelError
from polyvec.index import exact
from polyvec.index.folder import (
    PENDING,
    Manifest,
    check_folder,
    locked,
    read_generation,
    read_manifest,
    write_generation,
)
from polyvec.index.records import BuildReport, Hit, as_records, check_embedder
from polyvec.index.rows import CheckedRows
from polyvec.interfaces import (
    EncodeReport,
    MultiVectors,
    PromptChoice,
    RunOptions,
    SparseVectors,
    TextEncoder,
    Truncate,
)
from polyvec.storage.files import as_path
from polyvec.storage.vector_cache import Entries

CHUNK = 1024  # texts encoded before their vectors are stored: the most that a kill can cost
SPARSE_LIMIT_BYTES = 2**31  # sparse vectors are stored as dense ones up to this size


class PlainIndex:
    """Texts and their vectors in a folder.

    >>> index, report = PlainIndex.build("my-index", records, embedder)     # doctest: +SKIP
    >>> PlainIndex.open("my-index").search(["a question"], embedder, top_k=3)    # doctest: +SKIP
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        vectors_NE: np.ndarray | CheckedRows,
        items: list[Record],
    ) -> None:
        self.folder, self.manifest, self.items = folder, manifest, items
        self.rows_NE = vectors_NE

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def vectors_NE(self) -> np.ndarray:  # noqa: N802 - carries its shape in its name
        """All vectors, of an opened index a memmap; IndexStoreError if some are damaged."""
        return self.rows_NE[:]

    @cached_property
    def inverse_lengths_N(self) -> np.ndarray:  # noqa: N802 - carries its shape in its name
        """1 over the length of each vector: 4 bytes a text, in place of a normalised copy."""
        return exact.inverse_lengths(self.rows_NE)

    def nearest(
        self, queries_QE: np.ndarray, k: int, rows: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`exact.top_k` of the queries, of these rows or of all, by a similarity that has a name.

        Places in `rows`, if they are given.
        """
        documents_NE: np.ndarray | CheckedRows = self.rows_NE
        lengths_N = self.inverse_lengths_N if self.manifest.similarity == "cosine" else None
        if rows is not None:
            documents_NE = self.vectors_NE[rows]
            lengths_N = None if lengths_N is None else lengths_N[rows]
        return exact.top_k(
            queries_QE, documents_NE, k, self.manifest.similarity, inverse_lengths_N=lengths_N
        )

    @classmethod
    def open(cls, folder: str | Path) -> "PlainIndex":
        """The index in a folder; IndexStoreError if there is none or it is damaged.

        Vectors are read, and compared with their checksums, when they are first needed.
        """
        folder = as_path(folder, "folder")
        manifest = read_manifest(folder)
        while manifest is not None:
            try:
                return cls(folder, manifest, *read_generation(folder, manifest))
            except FileNotFoundError as error:
                # A build may have replaced the generation between the two reads.
                before, manifest = manifest, read_manifest(folder)
                if manifest == before:
                    raise IndexStoreError(
                        f"{folder}: {Path(error.filename).name} is missing; build the index again "
                        "with polyvec index"
                    ) from None
        raise IndexStoreError(
            f"{folder}: contains no index; build one with: polyvec index {folder} FILE"
        )

    @classmethod
    def build(
        cls,
        folder: str | Path,
        records: Iterable[Record],
        embedder: TextEncoder,
        *,
        model: str = "",
        scale: str = "",
        attention: str = "",
        options: str = "",
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        truncate: Truncate = "warn",
        **prompt: Unpack[PromptChoice],
    ) -> tuple["PlainIndex", BuildReport]:
        """Build the index of these records, in place of the folder's old one.

        Texts whose vectors are in the old index, or were computed by an interrupted build, are
        not encoded again. `model` is the name that `polyvec search` loads by default: of a
        recipe, if there is a `scale`, with this `attention`, if there is one, and with these
        `options` of the command line. `prompt`, `prompt_name` and `role` are those of the texts;
        by default they are read as documents.
        Raises DataError for a duplicate id, IndexStoreError if the folder contains other files,
        another process is building it, or the model has no dense vector for a text.
        """
        folder = as_path(folder, "folder")
        for name, value in (
            ("model", model),
            ("scale", scale),
            ("attention", attention),
            ("options", options),
        ):
            if not isinstance(value, str):
                raise InputError(f"{name} is {value!r}, expected a string")
        check_embedder(embedder)
        items = as_records(records)
        check_folder(folder)
        _check_dense(embedder, len(items))
        folder.mkdir(parents=True, exist_ok=True)
        how = RunOptions(batch_size, show_progress_bar=show_progress_bar, truncate=truncate)
        given = {name: value for name, value in prompt.items() if value is not None}
        choice = cast("PromptChoice", {"role": "document", **given})
        with locked(folder):
            manifest = Manifest.new(
                model=model,
                model_sha256=embedder.fingerprint(),
                prompt=embedder.prompt_key(**choice)[0] or "",
                similarity=embedder.similarity_fn_name,
                dimension=embedder.get_embedding_dimension(),
                count=len(items),
                scale=scale,
                attention=attention,
                options=options,
                asked=json.dumps(given, sort_keys=True) if given else "",
            )
            vectors_NE, report = _vectors(folder, manifest, items, embedder, how, choice)
            manifest = write_generation(folder, manifest, vectors_NE, items)
        return cls(folder, manifest, vectors_NE, items), report

    def search(
        self,
        queries: str | Sequence[str],
        embedder: TextEncoder,
        *,
        top_k: int = 10,
        truncate: Truncate = "warn",
        **prompt: Unpack[PromptChoice],
    ) -> list[list[Hit]]:
        """The nearest texts of each query, best first, exactly; a single string is one query.

        `prompt`, `prompt_name` and `role` are those of the queries, by default read as queries.
        Raises IndexStoreError if another model made the index or vectors are damaged, InputError
        for what is not a text and ModelError, by id, for a similarity that is NaN or infinite.
        """
        self.check(embedder)
        queries = [queries] if isinstance(queries, str) else queries
        check_texts(queries)
        queries = list(queries)
        if not self.items:
            return [[] for _ in queries]
        given: dict[str, Any] = {k: v for k, v in prompt.items() if v is not None}
        if truncate != "warn":
            given["truncate"] = truncate
        if given:
            found_QE = embedder.encode(queries, **{"role": "query", **given})
        else:
            found_QE = embedder.encode_query(queries)
        queries_QE = np.asarray(found_QE, np.float32)
        if queries_QE.shape != (len(queries), self.manifest.dimension):
            raise ModelError(
                f"{type(embedder).__name__}.encode_query gave an array of shape "
                f"{queries_QE.shape} for {len(queries)} queries of {self.manifest.dimension} "
                "dimensions"
            )
        try:
            if self.manifest.similarity in SIMILARITIES:
                found = self.nearest(queries_QE, top_k)
            else:
                # The model's own function scores all documents at once, so all are read now.
                similarity = lambda a, b: np.asarray(embedder.similarity(a, b))  # noqa: E731
                found = exact.top_k(queries_QE, np.array(self.vectors_NE), top_k, similarity)
        except exact.NotFiniteError as error:
            raise ModelError(
                f"{self.folder}: the similarity of query {queries[error.query][:60]!r} and text "
                f"{self.items[error.document].id!r} is NaN or infinite; try dtype float32, or "
                "build the index again"
            ) from None
        return [
            [
                Hit(self.items[row].id, score, self.items[row].text)
                for score, row in zip(scores.tolist(), rows.tolist(), strict=True)
            ]
            for scores, rows in zip(*found, strict=True)
        ]

    def check(self, embedder: TextEncoder) -> None:
        """Raises IndexStoreError unless this model, with these settings, made the index."""
        check_embedder(embedder)
        if embedder.fingerprint() != self.manifest.model_sha256:
            raise IndexStoreError(
                f"{self.folder}: built with another model ({self.manifest.built_with}) or with "
                "other settings of it, whose vectors cannot be compared; use that model, or "
                "build the index again"
            )


def _vectors(
    folder: Path,
    manifest: Manifest,
    items: Sequence[Record],
    embedder: TextEncoder,
    options: RunOptions,
    choice: PromptChoice,
) -> tuple[np.ndarray, BuildReport]:
    """Vectors of all items, [N, E]; those that are not known are computed and stored in chunks."""
    key = hashlib.sha256(
        f"{manifest.model_sha256}{manifest.prompt}{manifest.asked}".encode()
    ).hexdigest()
    entries = Entries(folder / PENDING / key[:16], manifest.dimension)
    _include_old(entries, folder, manifest)
    first: dict[str, int] = {}
    places_N = np.array([first.setdefault(item.text, len(first)) for item in items], np.int64)
    texts = list(first)
    vectors_UE = np.empty((len(texts), manifest.dimension), np.float32)
    hits = entries.get(texts)
    vectors_UE[hits.rows] = hits.vectors
    missing = np.setdiff1d(np.arange(len(texts)), hits.rows)
    todo = [texts[row] for row in missing]
    report = EncodeReport()
    chunks = embedder.encode_iter(todo, chunk_size=CHUNK, options=options, report=report, **choice)
    done = 0
    for chunk in chunks:
        _check_shape(chunk, len(todo) - done, manifest.dimension, embedder)
        rows, done = missing[done : done + len(chunk)], done + len(chunk)
        _check_finite(chunk, [texts[row] for row in rows], items)
        entries.put([texts[row] for row in rows], chunk)
        vectors_UE[rows] = chunk
    if done < len(todo):
        name = type(embedder).__name__
        raise ModelError(f"{name}.encode_iter gave {done} vectors for {len(todo)} texts")
    vectors_NE = vectors_UE if len(texts) == len(items) else vectors_UE[places_N]
    return vectors_NE, BuildReport(len(items), len(todo), report)


def _check_shape(chunk: np.ndarray, most: int, dimension: int, embedder: TextEncoder) -> None:
    """Raises ModelError for vectors that numpy would broadcast, or that belong to no text."""
    shape = np.shape(chunk)
    if len(shape) != 2 or shape[0] > most or shape[1] != dimension:
        raise ModelError(
            f"{type(embedder).__name__}.encode_iter gave an array of shape {shape}, expected at "
            f"most {most} rows of {dimension} dimensions"
        )


def _include_old(entries: Entries, folder: Path, manifest: Manifest) -> None:
    """Reuse the vectors of the old index that are whole; damage prevents no new index."""
    told: list[str] = []
    try:
        old = read_manifest(folder)
        made = manifest.model_sha256, manifest.prompt, manifest.asked
        if old is None or (old.model_sha256, old.prompt, old.asked) != made:
            return
        rows_NE, items = read_generation(folder, old)
        if not rows_NE.has_sums:
            told.append(f"{folder}: an index of an older version, whose vectors have no checksums")
        for rows, vectors_NE in rows_NE.whole_blocks(told):
            entries.include((item.text for item in items[rows]), vectors_NE)
    except FileNotFoundError:
        return
    except IndexStoreError as error:
        told.append(str(error).removesuffix("; build the index again"))
    for line in told:
        warnings.warn(f"{line}; the texts are embedded again", DamagedCacheWarning, stacklevel=5)


def _check_finite(vectors_NE: np.ndarray, texts: Sequence[str], items: Sequence[Record]) -> None:
    """NaN would rank first in every search (faiss#2986); it is refused here, by id."""
    wrong = np.flatnonzero(~np.isfinite(vectors_NE).all(axis=1))
    if len(wrong):
        name = next(item.id for item in items if item.text == texts[wrong[0]])
        raise ModelError(
            f"the vector of text {name!r} holds NaN or infinity; try dtype float32, or leave "
            "the text out"
        )


def _check_dense(embedder: TextEncoder, num_texts: int) -> None:
    """Raises IndexStoreError for vectors that cannot be stored as one dense vector a text."""
    kind, name = embedder.encode_vectors([], role="document")[0], type(embedder).__name__
    if isinstance(kind, MultiVectors):
        raise IndexStoreError(
            f"{name} gives several vectors per text; an index stores one dense vector per text: "
            "use a model that pools its tokens"
        )
    num_bytes = 4 * num_texts * kind.dimension
    if isinstance(kind, SparseVectors) and num_bytes > SPARSE_LIMIT_BYTES:
        raise IndexStoreError(
            f"{name} gives sparse vectors; {num_texts} of {kind.dimension} dimensions would take "
            f"{num_bytes / 2**30:.1f} GiB as dense ones, at most {SPARSE_LIMIT_BYTES / 2**30:.0f} "
            "are stored: split the texts over several indexes, or use a model with fewer dimensions"
        )
