"""What every engine may take for granted of the rows that it is given, and of queries."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from polyvec.errors import DataError, IndexStoreError, InputError
from polyvec.index.engines.interface import FORMS, Description, Form, Rows
from polyvec.index.filters import FIELD, Kind, Value, kind_of
from polyvec.interfaces import DenseVectors, MultiVectors, SparseVectors, Vectors


def check_rows(rows: Rows, description: Description) -> None:
    """Raises InputError or DataError, naming the id, for rows that this index cannot hold.

    Columns of other lengths, an id twice, a field of another kind, vectors of another form or
    width, and numbers that are NaN or infinite: they would rank first in every search
    (faiss#2986).
    """
    lengths = {len(rows.ids), len(rows.texts), len(rows.metadata), *map(len, rows.vectors.values())}
    if len(lengths) != 1:
        raise InputError(f"rows: columns of {sorted(lengths)} entries, expected equal lengths")
    if len(set(rows.ids)) != len(rows.ids):
        twice = next(each for each in rows.ids if list(rows.ids).count(each) > 1)
        raise DataError(f"duplicate id {twice!r}; ids are unique")
    for name, metadata in zip(rows.ids, rows.metadata, strict=True):
        check_metadata(name, metadata, description.fields)
    if set(rows.vectors) != set(description.dimensions):
        raise InputError(
            f"rows have {' and '.join(rows.vectors) or 'no'} vectors, the index stores "
            f"{' and '.join(description.dimensions)}"
        )
    for form, vectors in rows.vectors.items():
        if not isinstance(vectors, FORMS[form]):
            raise InputError(f"rows: {form} vectors are {type(vectors).__name__}")
        if vectors.dimension != description.dimensions[form]:
            first = f" (first: id {rows.ids[0]!r})" if len(rows) else ""
            raise IndexStoreError(
                f"{form} vectors of {vectors.dimension} dimensions{first}, the index has "
                f"{description.dimensions[form]}; use the model that made the index"
            )
        wrong = not_finite(vectors)
        if wrong is not None:
            raise DataError(
                f"the vector of text {rows.ids[wrong]!r} holds NaN or infinity; try dtype "
                "float32, or leave the text out"
            )


def check_metadata(name: str, metadata: Mapping[str, Value], fields: Mapping[str, Kind]) -> None:
    """Raises DataError for a field without a name, of another kind, or that is not finite."""
    for field, value in metadata.items():
        if not isinstance(field, str) or not FIELD.fullmatch(field):
            raise DataError(
                f"text {name!r}: {field!r} is not a field's name (letters, digits and _, at most "
                "63); rename it or leave it out"
            )
        if not isinstance(value, str | int | float):
            raise DataError(
                f"text {name!r}: field {field!r} is {type(value).__name__}, expected text, a "
                "number, true or false"
            )
        if isinstance(value, str) and value.encode(errors="ignore").decode() != value:
            raise DataError(f"text {name!r}: field {field!r} is not valid Unicode; leave it out")
        if isinstance(value, float) and not math.isfinite(value):
            raise DataError(f"text {name!r}: field {field!r} is {value}; leave it out")
        if kind_of(value) == "int" and not -(2**63) <= value < 2**63:  # type: ignore[operator]
            raise DataError(f"text {name!r}: field {field!r} is {value}, more than 64 bits hold")
        kind = fields.get(field, kind_of(value))
        if kind_of(value) != kind and (kind_of(value), kind) != ("int", "float"):
            raise DataError(
                f"text {name!r}: field {field!r} is {value!r}, but {kind} in this index; give it "
                "that kind, or another name"
            )


def not_finite(vectors: Vectors) -> int | None:
    """The first text whose vector holds NaN or infinity."""
    match vectors:
        case DenseVectors(values_NE):
            wrong = ~np.isfinite(values_NE).all(axis=1)
            return int(wrong.argmax()) if wrong.any() else None
        case SparseVectors(indptr, _, values_Z):
            place, starts = np.flatnonzero(~np.isfinite(values_Z)), indptr
        case MultiVectors(values_TE, offsets):
            place, starts = np.flatnonzero(~np.isfinite(values_TE).all(axis=1)), offsets
    return int(np.searchsorted(starts, place[0], side="right")) - 1 if len(place) else None


def check_query(queries: Vectors, k: int, description: Description) -> None:
    """Raises InputError or IndexStoreError for queries that this index cannot answer."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise InputError(f"top_k must be at least 1, got {k!r}")
    form = form_of(queries)
    if form not in description.dimensions:
        raise InputError(
            f"{form} queries, but the index stores {' and '.join(description.dimensions)} vectors"
        )
    if queries.dimension != description.dimensions[form]:
        raise IndexStoreError(
            f"queries of {queries.dimension} dimensions, the index has "
            f"{description.dimensions[form]}; use the model that made the index"
        )
    wrong = not_finite(queries)
    if wrong is not None:
        raise InputError(f"the vector of query {wrong} holds NaN or infinity; try dtype float32")


def form_of(vectors: Vectors) -> Form:
    """The name of the vectors' form; InputError for what is none, such as an array."""
    for form, kind in FORMS.items():
        if isinstance(vectors, kind):
            return form
    raise InputError(
        f"vectors are {type(vectors).__name__}, expected DenseVectors(array), SparseVectors or "
        "MultiVectors of polyvec.interfaces"
    )


def typed(metadata: Sequence[Mapping[str, Value]], fields: Mapping[str, Kind]) -> list[dict]:  # type: ignore[type-arg]
    """The metadata with whole numbers as floats where the field is one."""
    return [
        {key: float(value) if fields[key] == "float" else value for key, value in each.items()}
        for each in metadata
    ]
