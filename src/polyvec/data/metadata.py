"""The columns of a row beside its text and id, as metadata by which a search is filtered."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from polyvec.errors import DataError, SkippedColumnWarning, known

Value = str | int | float | bool
FIELD = re.compile(r"[A-Za-z_]\w{0,62}", re.ASCII)
WORDS = {"true": True, "false": False}


@dataclass(slots=True)
class Columns:
    """Which columns become metadata: those that are wanted, or all.

    Lists, objects and bytes are left out with a warning for each column, and so are missing
    values (null, NaN, an empty cell). A name becomes a field's: "the year" is the_year.
    """

    wanted: Sequence[str] | None = None
    cells: bool = False  # values are cells of a table of text, in which a number is text
    told: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)

    def of(self, row: Mapping[str, Any], but: set[str], where: str) -> dict[str, Value]:
        """The metadata of a row; `but` are its columns of text and id."""
        self.seen |= set(row)
        names = [name for name in row if name not in but] if self.wanted is None else self.wanted
        found: dict[str, Value] = {}
        for name in names:
            value = self._value(str(name), row.get(name), where)
            if value is not None:
                found[_field(str(name))] = value
        return found

    def check(self, where: str) -> None:
        """Raises DataError for a column that was wanted and that no row had."""
        for name in self.wanted or ():
            if self.seen and name not in self.seen:
                raise DataError(f"{where}: no column {name!r}.{known(name, self.seen)}")

    def _value(self, name: str, value: Any, where: str) -> Value | None:
        if value is None or (value == "" and self.cells):
            return None
        if isinstance(value, Decimal):
            value = float(value)
        if isinstance(value, float) and math.isnan(value):
            return None
        if isinstance(value, str | int | float):
            return value
        if hasattr(value, "isoformat"):  # dates of Parquet
            return str(value.isoformat())
        if value not in ({}, []) and name not in self.told:
            self.told.add(name)
            warnings.warn(
                f"{where}: column {name!r} is {type(value).__name__} and left out of the metadata, "
                "which is text, numbers, true and false",
                SkippedColumnWarning,
                stacklevel=2,
            )
        return None


def _field(name: str) -> str:
    found = re.sub(r"\W", "_", name, flags=re.ASCII)[:63]
    return found if FIELD.fullmatch(found) else f"_{found}"[:63]


def typed_cells(rows: Sequence[dict[str, Value]]) -> list[dict[str, Value]]:
    """The metadata of cells, with the numbers and booleans of columns that hold nothing else."""
    columns: dict[str, list[str]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(str(value))
    read = {name: _reader(cells) for name, cells in columns.items()}
    return [{name: read[name](str(value)) for name, value in row.items()} for row in rows]


def _reader(cells: Sequence[str]) -> Any:
    """What reads every cell of a column: bool, int, float or str."""
    # Not "007", which is a code, and no number that loses its zeros.
    if all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", cell) for cell in cells):
        return int
    if all(re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", cell) for cell in cells):
        return float
    if all(cell.lower() in WORDS for cell in cells):
        return lambda cell: WORDS[cell.lower()]
    return str
