"""Rows as points of Qdrant and back, filters as its filters, words as sparse vectors.

A point's id is a UUID made of the row's id. Its payload:

    id, text      as they are
    fields        the metadata
    lengths       of vectors that were not of length 1, where Qdrant stores them normalized

N texts, E numbers a vector, T tokens.
"""

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from qdrant_client import models

from polyvec.data.words import normalized, words
from polyvec.errors import InputError
from polyvec.index.engines.checks import typed
from polyvec.index.engines.interface import Description, Form, Rows
from polyvec.index.filters import And, Compare, Exists, Filter, In, Not, Or, Value
from polyvec.interfaces import DenseVectors, MultiVectors, SparseVectors, Vectors

SPACE = uuid.UUID("5f6c3c0e-6a4e-5c1b-9d1c-6a8f2f5b7a10")  # of our UUIDs
WORDS = "words"  # the sparse vector of a text's words
# Of BM25. Qdrant multiplies with the rarity of a word, but does not know how long texts are: as
# in fastembed, a text of 256 words counts as one of average length.
K1, B, LENGTH = 1.2, 0.75, 256
REQUEST_BYTES = 16 * 2**20  # a server refuses requests of more than 32 MiB
NEAR_1 = 1e-6  # lengths that differ less are rounding


def point_id(name: str) -> str:
    """The id of a point: Qdrant takes whole numbers and UUIDs only."""
    return str(uuid.uuid5(SPACE, name))


def points(rows: Rows, made: Description) -> list[models.PointStruct]:
    """A point for each row."""
    metadata = typed(rows.metadata, made.fields)
    columns = {form: _stored(each, made) for form, each in rows.vectors.items()}
    found = []
    for row, (name, text, fields) in enumerate(zip(rows.ids, rows.texts, metadata, strict=True)):
        payload: dict[str, Any] = {"id": name, "text": text, "fields": fields}
        vector: dict[str, Any] = {WORDS: bm25_vector(text)}
        for form, (vectors, lengths) in columns.items():
            vector[form] = vectors[row]
            if np.any(np.abs(lengths[row] - 1) > NEAR_1):
                payload.setdefault("lengths", {})[form] = np.asarray(lengths[row]).tolist()
        # A vector without numbers is left out, which Qdrant takes.
        vector = {each: value for each, value in vector.items() if is_full(value)}
        found.append(models.PointStruct(id=point_id(name), payload=payload, vector=vector))
    return found


def is_full(vector: Any) -> bool:
    """Whether it has numbers: Qdrant refuses to search with none."""
    return bool(vector.indices if isinstance(vector, models.SparseVector) else vector)


def _stored(vectors: Vectors, made: Description) -> tuple[list[Any], Any]:
    """What is stored for each text, and the lengths that Qdrant does not keep."""
    cosine = made.similarity == "cosine"
    match vectors:
        # Divided here: the local mode gives back its own quotient, or, once it was opened again,
        # what it was given.
        case DenseVectors(values_NE):
            lengths_N = _lengths(values_NE) if cosine else np.ones(len(vectors), np.float32)
            stored_NE = values_NE.astype(np.float32) / lengths_N[:, None]
            return stored_NE.tolist(), lengths_N
        case MultiVectors():
            texts = [vectors[row] for row in range(len(vectors))]
            lengths = [_lengths(each) if cosine else np.ones(len(each)) for each in texts]
            pairs = zip(texts, lengths, strict=True)
            return [(each / size[:, None]).tolist() for each, size in pairs], lengths
        case SparseVectors():
            # Qdrant has only the product of sparse vectors, which of unit vectors is the cosine.
            lengths_N = sparse_lengths(vectors) if cosine else np.ones(len(vectors), np.float32)
            return sparse_vectors(vectors, lengths_N), lengths_N


def _lengths(values_NE: np.ndarray) -> np.ndarray:
    """The length of each vector; 1 for one of zeros."""
    lengths_N = np.linalg.norm(values_NE.astype(np.float32), axis=1)
    return np.where(lengths_N > 0, lengths_N, np.float32(1))


def sparse_lengths(vectors: SparseVectors) -> np.ndarray:
    """The length of each vector; 1 for one of zeros."""
    rows_Z = np.repeat(np.arange(len(vectors)), np.diff(vectors.indptr))
    squares_N = np.bincount(rows_Z, vectors.values_Z.astype(np.float64) ** 2, len(vectors))
    lengths_N: np.ndarray = np.where(squares_N > 0, np.sqrt(squares_N), 1)
    return lengths_N


def sparse_vectors(vectors: SparseVectors, lengths_N: np.ndarray) -> list[models.SparseVector]:
    """Qdrant's form of each vector, divided by its length."""
    return [
        models.SparseVector(
            indices=vectors.indices_Z[start:stop].tolist(),
            values=(vectors.values_Z[start:stop] / length).astype(np.float32).tolist(),
        )
        for start, stop, length in zip(
            vectors.indptr[:-1], vectors.indptr[1:], lengths_N, strict=True
        )
    ]


def rows_of(records: Sequence[models.Record], made: Description, forms: Sequence[Form]) -> Rows:
    """The rows of points, with vectors of these forms."""
    payloads = [each.payload or {} for each in records]
    vectors = {form: _vectors(records, form, made) for form in forms}
    return Rows(
        [each["id"] for each in payloads],
        [each["text"] for each in payloads],
        [fields_of(each, made) for each in payloads],
        vectors,
    )


def fields_of(payload: Mapping[str, Any], made: Description) -> dict[str, Value]:
    """The metadata, with numbers of their field's kind: JSON writes 1.0 as it writes 1."""
    fields: dict[str, Value] = typed([payload["fields"]], made.fields)[0]
    return fields


def _vectors(records: Sequence[models.Record], form: Form, made: Description) -> Vectors:
    width = made.dimensions[form]
    named = [each.vector if isinstance(each.vector, dict) else {} for each in records]
    stored: list[Any] = [each.get(form) for each in named]
    lengths = [((each.payload or {}).get("lengths") or {}).get(form, 1.0) for each in records]
    if form == "dense":
        values = [
            np.array(each, np.float32) * size for each, size in zip(stored, lengths, strict=True)
        ]
        flat = np.stack(values) if values else np.empty((0, width))
        return DenseVectors(flat.astype(np.float32))
    if form == "multi":
        texts = [
            np.array(each, np.float32).reshape(-1, width)
            * np.array(size, np.float32).reshape(-1, 1)
            if each
            else np.empty((0, width), np.float32)
            for each, size in zip(stored, lengths, strict=True)
        ]
        return MultiVectors.of(texts, width)
    parts = []
    for each, size in zip(stored, lengths, strict=True):
        held = isinstance(each, models.SparseVector)
        indices = np.array(each.indices if held else [], np.int32)
        values_Z = np.array(each.values if held else [], np.float32) * np.float32(size)
        order = indices.argsort()
        indptr = np.array([0, len(indices)], np.int64)
        parts.append(SparseVectors(indptr, indices[order], values_Z[order], width))
    return SparseVectors.joined(parts, width)


def queries_of(queries: Vectors, made: Description) -> list[Any]:
    """Each query in Qdrant's form."""
    match queries:
        case DenseVectors(values_QE):
            return list(values_QE.astype(np.float32).tolist())
        case MultiVectors():
            return [queries[row].tolist() for row in range(len(queries))]
        case SparseVectors():
            cosine = made.similarity == "cosine"
            lengths_Q = sparse_lengths(queries) if cosine else np.ones(len(queries))
            return list(sparse_vectors(queries, lengths_Q))


def requests(
    points: list[models.PointStruct], made: Description
) -> Iterator[list[models.PointStruct]]:
    """The points in parts that a server takes in one request."""
    part: list[models.PointStruct] = []
    size = 0
    for point in points:
        bytes_of = len(point.model_dump_json())
        if part and size + bytes_of > REQUEST_BYTES:
            yield part
            part, size = [], 0
        part.append(point)
        size += bytes_of
    if part:
        yield part


# ---- words --------------------------------------------------------------------------------------


def bm25_vector(text: str) -> models.SparseVector:
    """How much each word of a text counts: BM25 without the rarity of words.

    That factor, ln(1 + (N - n + 0.5) / (n + 0.5)), is Qdrant's modifier `idf` (Robertson and
    Zaragoza 2009).
    """
    counts = Counter(map(_hash, words(normalized(text))))
    norm = K1 * (1 - B + B * counts.total() / LENGTH)
    return models.SparseVector(
        indices=list(counts), values=[n * (K1 + 1) / (n + norm) for n in counts.values()]
    )


def words_query(text: str) -> models.SparseVector:
    """The words of a query, each once."""
    found = list(dict.fromkeys(map(_hash, words(normalized(text)))))
    return models.SparseVector(indices=found, values=[1.0] * len(found))


@lru_cache(maxsize=100_000)
def _hash(word: str) -> int:
    """A dimension of 32 bits; of a million words some hundred share one with another word."""
    digest = hashlib.blake2b(word.encode(errors="replace"), digest_size=4).digest()
    return int.from_bytes(digest, "little")


# ---- filters ------------------------------------------------------------------------------------


def filter_of(given: Filter | None, made: Description) -> models.Filter | None:
    """The filter in Qdrant's form."""
    if given is None:
        return None
    return models.Filter(must=[_condition(given, made)])


def _condition(given: Filter, made: Description) -> Any:
    match given:
        case And(parts):
            return models.Filter(must=[_condition(part, made) for part in parts])
        case Or(parts):
            return models.Filter(should=[_condition(part, made) for part in parts])
        case Not(inside):
            return models.Filter(must_not=[_condition(inside, made)])
        case Exists(field):
            empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=_key(field)))
            return models.Filter(must_not=[empty])
        case In(field, values):
            options = tuple(Compare(field, "=", value) for value in values)
            return _condition(Or(options), made)
        case Compare(field, "!=", value):
            equal = Compare(field, "=", value)
            return _condition(And((Exists(field), Not(equal))), made)
        case Compare(field, sign, value):
            return models.FieldCondition(key=_key(field), **_compared(field, sign, value, made))


def _compared(field: str, sign: str, value: Value, made: Description) -> dict[str, Any]:
    if sign == "=":
        if isinstance(value, float) and value.is_integer() and made.fields.get(field) == "int":
            value = int(value)
        if isinstance(value, str | bool):
            return {"match": models.MatchValue(value=value)}
        # A range is of floats, which do not hold every whole number of 64 bits.
        if isinstance(value, int) and made.fields.get(field) == "int" and abs(value) < 2**63:
            return {"match": models.MatchValue(value=value)}
    if isinstance(value, str):
        raise InputError(
            f"filter: {field} {sign} {value!r}: Qdrant compares texts by =, !=, in and not in only"
        )
    names = {"=": ("gte", "lte"), "<": ("lt",), "<=": ("lte",), ">": ("gt",), ">=": ("gte",)}
    return {"range": models.Range(**dict.fromkeys(names[sign], float(value)))}


def _key(field: str) -> str:
    return f"fields.{field}"
