"""The engine of plain files: read only, exact, without any extra; `polyvec.index.plain` writes it.

N texts, Q queries, E numbers a vector.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

import numpy as np

from polyvec.errors import IndexStoreError, InputError
from polyvec.index.engines.checks import check_query
from polyvec.index.engines.interface import Candidate, Description, Engine, Form, Rows
from polyvec.index.exact import NotFiniteError
from polyvec.index.filters import Filter, matches
from polyvec.index.plain import PlainIndex
from polyvec.index.records import grown
from polyvec.interfaces import DenseVectors, Vectors

READ_ONLY = (
    "an index of plain files is built as a whole: polyvec index --plain, or PlainIndex.build"
)


class PlainEngine(Engine):
    """A folder that `PlainIndex.build` wrote."""

    name = "plain"
    forms: ClassVar[frozenset[Form]] = frozenset({"dense"})  # type: ignore[misc]
    has_words = False

    def __init__(self, index: PlainIndex) -> None:
        self.index = index
        self._row_of = {item.id: row for row, item in enumerate(index.items)}
        made = index.manifest
        self._description = Description(
            made.model,
            made.model_sha256,
            made.similarity,
            {"dense": made.dimension},
            made.prompt,
            grown({}, index.items),
            made.scale,
            made.attention,
            made.options,
            made.asked,
        )

    @classmethod
    def create(cls, where: str, description: Description) -> Self:
        raise IndexStoreError(f"{where}: {READ_ONLY}")

    @classmethod
    def open(cls, where: str) -> Self:
        return cls(PlainIndex.open(where))

    @property
    def description(self) -> Description:
        return self._description

    def describe(self, description: Description) -> None:
        raise IndexStoreError(f"{self.index.folder}: {READ_ONLY}")

    def upsert(self, rows: Rows) -> None:
        raise IndexStoreError(f"{self.index.folder}: {READ_ONLY}")

    def delete(self, ids: Sequence[str]) -> int:
        raise IndexStoreError(f"{self.index.folder}: {READ_ONLY}")

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> Rows:
        return self._rows([self._row_of[each] for each in ids if each in self._row_of], vectors)

    def count(self, filter: Filter | None = None) -> int:
        return len(self._passing(filter))

    def near(
        self,
        queries: Vectors,
        k: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[list[Candidate]]:
        check_query(queries, k, self._description)
        rows, queries_QE = self._passing(filter), queries.to_dense()
        if not len(rows):
            return [[] for _ in queries_QE]
        try:
            found = self.index.nearest(queries_QE, k, None if filter is None else rows)
        except NotFiniteError as error:
            raise IndexStoreError(
                f"{self.index.folder}: the similarity of query {error.query} and text "
                f"{self.index.items[rows[error.document]].id!r} is NaN or infinite; build the "
                "index again"
            ) from None
        items = self.index.items
        return [
            [
                Candidate(items[row].id, score, items[row].text, items[row].metadata)
                for score, row in zip(scores, (rows[place] for place in places), strict=True)
            ]
            for scores, places in zip(*(each.tolist() for each in found), strict=True)
        ]

    def words(
        self, queries: Sequence[str], k: int, *, filter: Filter | None = None
    ) -> list[list[Candidate]]:
        raise InputError(
            f"{self.index.folder}: an index of plain files ranks no words; build it without --plain"
        )

    def scan(self, *, batch_size: int = 1024, vectors: bool = True) -> Iterator[Rows]:
        for start in range(0, len(self.index), batch_size):
            yield self._rows(range(start, min(start + batch_size, len(self.index))), vectors)

    def optimize(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _passing(self, filter: Filter | None) -> Sequence[int]:
        items = self.index.items
        if filter is None:
            return range(len(items))
        return [row for row, item in enumerate(items) if matches(filter, item.metadata)]

    def _rows(self, rows: Sequence[int], vectors: bool) -> Rows:
        items = [self.index.items[row] for row in rows]
        held: dict[Form, Vectors] = {}
        if vectors:
            held["dense"] = DenseVectors(np.array(self.index.vectors_NE[list(rows)]))
        return Rows(
            [item.id for item in items],
            [item.text for item in items],
            [item.metadata for item in items],
            held,
        )
