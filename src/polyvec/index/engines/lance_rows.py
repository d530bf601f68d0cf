"""Rows as Arrow tables and back, with their checksums; filters as SQL.

id, text     as they are
content      a hash of the text, by which equal texts are found
crc32        of id, text, metadata and vectors; compared for every row that is returned
dense        FixedSizeList of float32
sparse_indices, sparse_values      lists of int32 and float32
multi        lists of FixedSizeLists
field_NAME   a column for each field of the metadata, null where a text lacks it
"""

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from polyvec.errors import IndexStoreError
from polyvec.index.engines.checks import typed
from polyvec.index.engines.interface import Description, Form, Rows
from polyvec.index.filters import And, Compare, Exists, Filter, In, Kind, Not, Or, Value
from polyvec.interfaces import DenseVectors, MultiVectors, SparseVectors, Vectors

TYPES: Mapping[Kind, pa.DataType] = {
    "text": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}
FIELD = "field_"  # before the names of metadata, so that none is another column's


def schema(description: Description) -> pa.Schema:
    """The columns of an index."""
    columns = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("content", pa.int64(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
    ]
    for form, dimension in description.dimensions.items():
        columns += _vector_fields(form, dimension)
    return pa.schema([*columns, *(field_of(*each) for each in description.fields.items())])


def field_of(name: str, kind: Kind) -> pa.Field:
    """The column of a field of the metadata."""
    return pa.field(FIELD + name, TYPES[kind])


def _vector_fields(form: Form, dimension: int) -> list[pa.Field]:
    if form == "sparse":
        return [
            pa.field("sparse_indices", pa.list_(pa.int32())),
            pa.field("sparse_values", pa.list_(pa.float32())),
        ]
    vector = pa.list_(pa.float32(), dimension)
    return [pa.field(form, vector if form == "dense" else pa.list_(vector))]


def vector_columns(forms: Sequence[Form]) -> list[str]:
    """The names of the columns of these forms."""
    return [each.name for form in forms for each in _vector_fields(form, 1)]


def to_arrow(rows: Rows, description: Description) -> pa.Table:
    """The rows as a table of the index's columns, in any order."""
    metadata = typed(rows.metadata, description.fields)
    columns: dict[str, Any] = {
        "id": pa.array(rows.ids, pa.string()),
        "text": pa.array(rows.texts, pa.string()),
        "content": pa.array([content(text) for text in rows.texts], pa.int64()),
        "crc32": pa.array(_checksums(rows, metadata), pa.uint32()),
    }
    for vectors in rows.vectors.values():
        columns |= _vector_arrays(vectors)
    for name, kind in description.fields.items():
        columns[FIELD + name] = pa.array([each.get(name) for each in metadata], TYPES[kind])
    wanted = schema(description)
    return pa.table({name: columns[name] for name in wanted.names}, schema=wanted)


def _vector_arrays(vectors: Vectors) -> dict[str, pa.Array]:
    match vectors:
        case DenseVectors(values_NE):
            flat = pa.array(np.ascontiguousarray(values_NE, np.float32).ravel())
            return {"dense": pa.FixedSizeListArray.from_arrays(flat, vectors.dimension)}
        case SparseVectors(indptr, indices_Z, values_Z):
            offsets = pa.array(indptr.astype(np.int32))
            return {
                "sparse_indices": pa.ListArray.from_arrays(
                    offsets, pa.array(indices_Z.astype(np.int32))
                ),
                "sparse_values": pa.ListArray.from_arrays(
                    offsets, pa.array(values_Z.astype(np.float32))
                ),
            }
        case MultiVectors(values_TE, starts):
            flat = pa.array(np.ascontiguousarray(values_TE, np.float32).ravel())
            tokens = pa.FixedSizeListArray.from_arrays(flat, vectors.dimension)
            offsets = pa.array(starts.astype(np.int32))
            return {"multi": pa.ListArray.from_arrays(offsets, tokens)}


def vectors_of(table: pa.Table | pa.RecordBatch, form: Form, dimension: int) -> Vectors:
    """The vectors of a form in a table or a batch."""
    if form == "dense":
        flat = _flat(_column(table, "dense"))
        return DenseVectors(flat.reshape(-1, dimension))
    if form == "sparse":
        indices, values = _column(table, "sparse_indices"), _column(table, "sparse_values")
        return SparseVectors(_offsets(indices), _flat(indices), _flat(values), dimension)
    tokens = _column(table, "multi")
    return MultiVectors(_flat(tokens.flatten()).reshape(-1, dimension), _offsets(tokens))


def _column(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    column = table.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _flat(lists: pa.Array) -> np.ndarray:
    # flatten, unlike values, knows where a slice begins.
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False))


def _offsets(lists: pa.Array) -> np.ndarray:
    lengths = np.asarray(lists.value_lengths().to_numpy(zero_copy_only=False))
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def from_arrow(
    table: pa.Table | pa.RecordBatch, description: Description, where: str, *, vectors: bool
) -> Rows:
    """The rows of a table; IndexStoreError, naming the id, for a row that is damaged.

    Without its vectors a row cannot be compared with its checksum, and is not.
    """
    ids, texts = table.column("id").to_pylist(), table.column("text").to_pylist()
    columns = {name: table.column(FIELD + name).to_pylist() for name in description.fields}
    metadata: list[dict[str, Value]] = [
        {name: values[row] for name, values in columns.items() if values[row] is not None}
        for row in range(len(ids))
    ]
    if not vectors:
        return Rows(ids, texts, metadata)
    found = {
        form: vectors_of(table, form, dimension)
        for form, dimension in description.dimensions.items()
    }
    rows = Rows(ids, texts, metadata, found)
    stored = table.column("crc32").to_pylist()
    for name, one, other in zip(ids, stored, _checksums(rows, metadata), strict=True):
        if one != other:
            raise IndexStoreError(
                f"{where}: the row of id {name!r} is damaged; add it again with polyvec index "
                f"{where} --add, or delete it"
            )
    return rows


def content(text: str) -> int:
    """64 bits of the text's sha256, for finding equal texts; compare the texts themselves, too."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def _checksums(rows: Rows, metadata: Sequence[Mapping[str, Value]]) -> list[int]:
    """A crc32 of each row."""
    found = []
    pieces = [_pieces(rows.vectors[form]) for form in sorted(rows.vectors)]
    for name, text, fields, *parts in zip(rows.ids, rows.texts, metadata, *pieces, strict=True):
        told = json.dumps([name, text, sorted(fields.items())])
        value = zlib.crc32(told.encode())
        for part in parts:
            for array in part:
                value = zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
        found.append(value)
    return found


def _pieces(vectors: Vectors) -> Iterator[tuple[np.ndarray, ...]]:
    """The arrays of each text."""
    match vectors:
        case DenseVectors(values_NE):
            yield from ((row.astype(np.float32, copy=False),) for row in values_NE)
        case SparseVectors(indptr, indices_Z, values_Z):
            for start, stop in itertools.pairwise(indptr):
                yield (
                    indices_Z[start:stop].astype(np.int32, copy=False),
                    values_Z[start:stop].astype(np.float32, copy=False),
                )
        case MultiVectors():
            yield from (
                (vectors[row].astype(np.float32, copy=False),) for row in range(len(vectors))
            )


# ---- filters ------------------------------------------------------------------------------------


def sql(given: Filter, fields: Mapping[str, Kind]) -> str:
    """The filter as a condition that is true or false, and never null."""
    match given:
        case And(parts):
            return _balanced([sql(part, fields) for part in parts], "AND")
        case Or(parts):
            return _balanced([sql(part, fields) for part in parts], "OR")
        case Not(inside):
            return f"(NOT {sql(inside, fields)})"
        case Exists(field):
            return f"({_name(field)} IS NOT NULL)"
        case In(field, values):
            fitting = [_fitting(value, fields[field]) for value in values]
            known = [each for each in fitting if each is not None]
            return f"({_name(field)} IS NOT NULL AND {is_in(FIELD + field, known)})"
        case Compare(field, sign, value):
            column = _name(field)
            # Lance turns a literal into the column's type, and fails for 2003.5 and a whole number.
            if fields[field] == "int" and isinstance(value, float):
                column = f"CAST({column} AS DOUBLE)"
            elif fields[field] == "float":
                value = float(value)
            return f"({_name(field)} IS NOT NULL AND {column} {sign} {literal(value)})"


def _balanced(parts: Sequence[str], word: str) -> str:
    """The conditions joined in pairs, as a chain of 50,000 overflows the stack of Lance."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return f"({_balanced(parts[:half], word)} {word} {_balanced(parts[half:], word)})"


def _fitting(value: Value, kind: Kind) -> Value | None:
    """The value in the type of its column; None if no value of that type equals it."""
    if kind == "float":
        return float(value)
    if kind == "int" and isinstance(value, float):
        return int(value) if value.is_integer() and -(2**63) <= value < 2**63 else None
    return value


def _name(field: str) -> str:
    return f"`{FIELD}{field}`"


def literal(value: Value) -> str:
    """A value in SQL."""
    if isinstance(value, bool):
        return str(value).lower()
    if value == -(2**63):  # the parser reads the sign by itself, and 2**63 as a float
        return "(-9223372036854775807 - 1)"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def is_in(column: str, values: Sequence[Value]) -> str:
    """A condition that the column has one of these values."""
    return f"`{column}` IN ({', '.join(map(literal, values))})" if len(values) else "false"
