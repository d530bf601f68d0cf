"""Rows as entities of Milvus and back, and filters in its language.

N texts, E numbers a vector.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyvec.errors import DataError, InputError
from polyvec.index.engines.checks import typed
from polyvec.index.engines.interface import Description, Form, Rows
from polyvec.index.filters import And, Compare, Exists, Filter, In, Not, Or, Value
from polyvec.interfaces import DenseVectors, SparseVectors, Vectors

METRICS: Mapping[str, str] = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
TEXT_BYTES, ID_BYTES = 65_535, 1024  # of a VARCHAR

# ---- rows ---------------------------------------------------------------------------------------


def check_similarity(made: Description) -> None:
    """Raises InputError for an index that Milvus cannot hold."""
    if made.similarity not in METRICS:
        raise InputError(f"similarity {made.similarity!r}: Milvus has {', '.join(METRICS)}")
    if "multi" in made.dimensions:
        raise InputError("Milvus stores no multi-vectors here; use a folder, Qdrant or PostgreSQL")
    if "sparse" in made.dimensions and made.similarity == "euclidean":
        raise InputError("similarity 'euclidean': Milvus has it of dense vectors only")


def check_lengths(rows: Rows) -> None:
    """Raises DataError for an id or a text that is too long."""
    for name, text in zip(rows.ids, rows.texts, strict=True):
        if len(name.encode()) > ID_BYTES or len(text.encode()) > TEXT_BYTES:
            raise DataError(
                f"text {name[:60]!r}: {len(name.encode())} bytes of id, {len(text.encode())} of "
                f"text; Milvus stores {ID_BYTES} and {TEXT_BYTES}; split it into chunks"
            )


def stored(form: Form, vectors: Vectors, made: Description) -> dict[str, list[Any]]:
    """The columns of a form of vectors."""
    if isinstance(vectors, SparseVectors):
        lengths_N = lengths_of(vectors, made)
        # Milvus takes no vector of zeros; no query has a number past the last dimension.
        held = [each or {vectors.dimension: 1.0} for each in sparse(vectors, lengths_N)]
        return {"sparse": held, "sparse_length": lengths_N.tolist()}
    return {form: vectors.to_dense().astype(np.float32).tolist()}


def lengths_of(vectors: SparseVectors, made: Description) -> np.ndarray:
    """What each vector is divided by: Milvus has only the product of sparse vectors."""
    if made.similarity != "cosine":
        return np.ones(len(vectors))
    rows_Z = np.repeat(np.arange(len(vectors)), np.diff(vectors.indptr))
    squares_N = np.bincount(rows_Z, vectors.values_Z.astype(np.float64) ** 2, len(vectors))
    lengths_N: np.ndarray = np.where(squares_N > 0, np.sqrt(squares_N), 1)
    return lengths_N


def sparse(vectors: SparseVectors, lengths_N: np.ndarray) -> list[dict[int, float]]:
    """Each vector as a table of dimensions, divided by its length."""
    found = []
    bounds = zip(vectors.indptr[:-1], vectors.indptr[1:], lengths_N, strict=True)
    for start, stop, length in bounds:
        values = (vectors.values_Z[start:stop] / length).tolist()
        found.append(dict(zip(vectors.indices_Z[start:stop].tolist(), values, strict=True)))
    return found


def bytes_of(rows: Rows) -> int:
    """About how many bytes the rows take in a request."""
    numbers = sum(
        each.values_NE.size if isinstance(each, DenseVectors) else each.to_dense().size
        for each in rows.vectors.values()
        if not isinstance(each, SparseVectors)
    )
    terms = rows.vectors.get("sparse")
    numbers += 2 * len(terms.values_Z) if isinstance(terms, SparseVectors) else 0
    return 4 * numbers + sum(len(each.encode()) for each in rows.texts)


def columns(made: Description, vectors: bool) -> list[str]:
    """The columns of rows, with or without vectors."""
    held = list(made.dimensions) if vectors else []
    return ["id", "text", "fields", *held, *(["sparse_length"] if "sparse" in held else [])]


def fields_of(entity: dict[str, Any], made: Description) -> dict[str, Value]:
    """The metadata of an entity."""
    held = entity["fields"]
    fields = json.loads(held) if isinstance(held, str | bytes) else dict(held)
    found: dict[str, Value] = typed([fields], made.fields)[0]
    return found


def rows_of(entities: Sequence[dict[str, Any]], made: Description, vectors: bool) -> Rows:
    """The rows of entities."""
    found: dict[Form, Vectors] = {}
    for form, width in made.dimensions.items() if vectors else ():
        if form == "dense":
            values = np.array([each["dense"] for each in entities], np.float32)
            found[form] = DenseVectors(values.reshape(-1, width))
        else:
            parts = [_one_sparse(each["sparse"], each["sparse_length"], width) for each in entities]
            found[form] = SparseVectors.joined(parts, width)
    return Rows(
        [each["id"] for each in entities],
        [each["text"] for each in entities],
        [fields_of(each, made) for each in entities],
        found,
    )


def _one_sparse(stored: dict[int, float], length: float, width: int) -> SparseVectors:
    pairs = sorted((int(index), value) for index, value in stored.items() if int(index) < width)
    values = np.array([value for _, value in pairs], np.float64) * length
    return SparseVectors(
        np.array([0, len(pairs)], np.int64),
        np.array([index for index, _ in pairs], np.int32),
        values.astype(np.float32),
        width,
    )


# ---- filters ------------------------------------------------------------------------------------


def expression(given: Filter) -> str:
    """The filter in Milvus's language, over the JSON column of metadata."""
    match given:
        case And(parts):
            return "(" + " and ".join(map(expression, parts)) + ")"
        case Or(parts):
            return "(" + " or ".join(map(expression, parts)) + ")"
        case Not(inside):
            return f"(not {expression(inside)})"
        case Exists(field):
            return f'(exists fields["{field}"])'
        case In(field, values):
            return expression(Or(tuple(Compare(field, "=", value) for value in values)))
        case Compare(field, sign, value):
            sign = "==" if sign == "=" else sign  # type: ignore[assignment]
            compared = f'fields["{field}"] {sign} {_literal(value)}'
            return f'(exists fields["{field}"] and {compared})'


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
