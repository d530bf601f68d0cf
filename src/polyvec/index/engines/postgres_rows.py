"""Rows of a table of PostgreSQL, filters as conditions, and names that it takes.

N texts, E numbers a vector, T tokens.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pgvector import HalfVector, SparseVector
from pgvector import Vector as PgVector
from psycopg import sql

from polyvec.errors import DataError, InputError
from polyvec.index.engines.interface import Candidate, Description, Form, Rows
from polyvec.index.filters import And, Compare, Exists, Filter, In, Kind, Not, Or, Value
from polyvec.interfaces import DenseVectors, MultiVectors, SparseVectors, Vectors

Part = tuple[sql.Composable, list[Any]]  # a piece of a statement with its parameters
TYPES: Mapping[Kind, str] = {
    "text": 'text COLLATE "C"',  # ordered as Python orders texts
    "int": "bigint",
    "float": "double precision",
    "bool": "boolean",
}
MOST_NONZERO = 16_000  # numbers of a sparsevec
MOST_VALUES = 65_000  # of a filter; a statement has at most 65,535 parameters

# ---- statements ---------------------------------------------------------------------------------


def column(field: str) -> sql.Identifier:
    """The column of a field, which is none of our own and none of PostgreSQL's (xmin, ctid)."""
    return sql.Identifier(short(f"f_{field}"))


def short(name: str) -> str:
    """A name of at most 63 bytes, where PostgreSQL cuts without a word."""
    if len(name) <= 63:
        return name
    return f"{name[:50]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def columns(made: Description, forms: Sequence[Form]) -> sql.Composed:
    """The columns of rows with vectors of these forms."""
    own = [sql.Identifier(name) for name in ("id", "text")]
    return sql.SQL(", ").join(
        [*own, *(column(name) for name in made.fields), *map(sql.Identifier, forms)]
    )


def where(filter: Filter | None, made: Description) -> Part:
    """The condition of a filter, with WHERE; nothing for none."""
    if filter is None:
        return sql.SQL(""), []
    asked, values = condition(filter)
    if len(values) > MOST_VALUES:
        raise InputError(
            f"filter: {len(values)} values, PostgreSQL takes at most {MOST_VALUES}; write: "
            "field in (...)"
        )
    return sql.SQL(" WHERE {}").format(asked), values


def condition(given: Filter) -> Part:
    """The filter as a condition that is true or false, and never null."""
    match given:
        case And(parts) | Or(parts):
            word = " AND " if isinstance(given, And) else " OR "
            found = [condition(part) for part in parts]
            joined = sql.SQL(word).join(asked for asked, _ in found)
            return sql.SQL("({})").format(joined), [each for _, some in found for each in some]
        case Not(inside):
            asked, values = condition(inside)
            return sql.SQL("(NOT {})").format(asked), values
        case Exists(field):
            return sql.SQL("({} IS NOT NULL)").format(column(field)), []
        case In(field, options):
            # A list is one parameter, of values of one type.
            lists = [
                [each for each in options if type(each) is kind]
                for kind in dict.fromkeys(map(type, options))
            ]
            name = column(field)
            each_list = [sql.SQL("{} = ANY(%s)").format(name)] * len(lists)
            equal = sql.SQL(" OR ").join([sql.SQL("false"), *each_list])
            return sql.SQL("({} IS NOT NULL AND ({}))").format(name, equal), lists
        case Compare(field, sign, value):
            name = column(field)
            asked = sql.SQL("({} IS NOT NULL AND {} " + sign + " %s)").format(name, name)
            return asked, [value]


# ---- rows ---------------------------------------------------------------------------------------


def check_sparse(rows: Rows) -> None:
    """Raises DataError for more numbers than pgvector stores."""
    sparse = rows.vectors.get("sparse")
    lengths_N = np.diff(sparse.indptr) if isinstance(sparse, SparseVectors) else np.zeros(1)
    if len(lengths_N) and lengths_N.max() > MOST_NONZERO:
        raise DataError(
            f"text {rows.ids[int(lengths_N.argmax())]!r}: {lengths_N.max()} numbers that are "
            f"not zero, pgvector stores at most {MOST_NONZERO}"
        )


def to_sql(vectors: Vectors) -> list[Any]:
    """A parameter for each text."""
    match vectors:
        case DenseVectors(values_NE):
            return [np.asarray(each, np.float32) for each in values_NE]
        case SparseVectors(indptr, indices_Z, values_Z, dimension):
            return [
                SparseVector(
                    dict(zip(indices_Z[a:b].tolist(), values_Z[a:b].tolist(), strict=True)),
                    dimension,
                )
                for a, b in itertools.pairwise(indptr)
            ]
        case MultiVectors():
            return [_array(vectors[row]) for row in range(len(vectors))]


def _array(values_TE: np.ndarray) -> str:
    """Vectors as the text of an array, which psycopg has no type for."""
    return "{" + ",".join(f'"{PgVector(each).to_text()}"' for each in values_TE) + "}"


def fields_of(row: Sequence[Any], made: Description) -> dict[str, Value]:
    """The metadata of a row."""
    values = row[2 : 2 + len(made.fields)]
    return {name: each for name, each in zip(made.fields, values, strict=True) if each is not None}


def scored(row: Sequence[Any], form: Form, made: Description) -> Candidate | None:
    """A row with its distance in the last place; None for what is not found."""
    distance = row[-1]
    if distance != distance:  # the cosine of zeros
        return None
    score = 1 - distance if made.similarity == "cosine" and form != "multi" else -distance
    if form == "sparse" and score <= 0 and made.similarity in ("cosine", "dot"):
        return None
    return Candidate(row[0], float(score), row[1], fields_of(row, made))


def rows_of(found: Sequence[Sequence[Any]], made: Description, forms: Sequence[Form]) -> Rows:
    """The rows of a result."""
    first = 2 + len(made.fields)
    vectors = {
        form: _vectors([row[first + at] for row in found], form, made.dimensions[form])
        for at, form in enumerate(forms)
    }
    ids, texts = [row[0] for row in found], [row[1] for row in found]
    return Rows(ids, texts, [fields_of(row, made) for row in found], vectors)


def _vectors(stored: Sequence[Any], form: Form, dimension: int) -> Vectors:
    if form == "dense":
        values = [_numbers(each) for each in stored]
        return DenseVectors(np.stack(values) if values else np.empty((0, dimension), np.float32))
    if form == "multi":
        return MultiVectors.of(
            [
                np.stack([_numbers(one) for one in each])
                if len(each)
                else np.empty((0, dimension), np.float32)
                for each in stored
            ],
            dimension,
        )
    counts = [0, *(len(each.indices()) for each in stored)]
    indices = [index for each in stored for index in each.indices()]
    values_Z = [value for each in stored for value in each.values()]
    return SparseVectors(
        np.cumsum(counts).astype(np.int64),
        np.array(indices, np.int32),
        np.array(values_Z, np.float32),
        dimension,
    )


def _numbers(vector: PgVector | HalfVector) -> np.ndarray:
    return np.asarray(vector.to_numpy(), np.float32)
