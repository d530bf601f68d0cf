"""The values of one row of a file, taken out strictly: what is wrong is said with the place."""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from polyvec.errors import DataError, known

# "title+text" is both columns, joined by a space; a list of columns is a list of their values.
Columns = Mapping[str, str | Sequence[str]]

WHOLE = re.compile(r"[+-]?[0-9]+")

Where = Mapping[str, str | int | bool | tuple[str | int, ...]]


class EmptyTextError(DataError):
    """A text is empty, or only white space."""


class Labels(dict[str, int]):
    """Numbers of the labels that are words, in the order of their first appearance.

    whole: whether a label was a whole number, which stays as it is.
    """

    whole = False

    def number(self, word: str) -> int:
        return self.setdefault(word, len(self))


@dataclass(frozen=True, slots=True)
class Cells:
    """The columns of a row by name. A column that is missing and one that is null are the same."""

    place: str
    values: Mapping[str, Any]
    labels: Labels = field(default_factory=Labels)

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def value(self, name: str) -> Any:
        if not self.has(name):
            there = [key for key, value in self.values.items() if value is not None]
            if name in self.values:
                raise DataError(f"{self.place}: {name!r} is null, expected a value")
            raise DataError(f"{self.place}: no column {name!r}.{known(name, there)}")
        return self.values[name]

    def text(self, name: str) -> str:
        """A string with characters; EmptyTextError if it has none."""
        return self.checked(self.value(name), name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A string, or a list of strings; no strings if the column is missing."""
        if not self.has(name):
            return ()
        value = self.values[name]
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(self.checked(each, name) for each in items)

    def checked(self, value: object, name: str) -> str:
        if not isinstance(value, str):
            raise DataError(f"{self.place}: {name!r} is {_shown(value)}, not a string")
        if not value.strip():
            raise EmptyTextError(
                f"{self.place}: {name!r} is empty. Correct the file, or leave such rows out "
                "with skip_empty = true."
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{self.place}: {name!r} has a lone surrogate at character {error.start}, which "
                "is not valid Unicode"
            ) from None
        return value

    def number(self, name: str) -> float:
        """A finite number, or a string of one (CSV has no numbers)."""
        return self.as_number(self.value(name), name)

    def numbers(self, name: str) -> tuple[float, ...]:
        if not self.has(name):
            return ()
        value = self.values[name]
        if not isinstance(value, list | tuple):
            raise DataError(f"{self.place}: {name!r} is {_shown(value)}, not a list of numbers")
        return tuple(self.as_number(each, name) for each in value)

    def as_number(self, value: object, name: str) -> float:
        found: object = value
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                found = float(value)
        # Real: numpy's numbers, too, which rows in memory may have.
        is_number = isinstance(found, Real) and not isinstance(found, bool)
        if is_number and not isinstance(found, Integral):
            found = float(found)  # type: ignore[arg-type] # float32 would overflow beside the limit
        # `not abs(...) <=` also rejects NaN, and integers that no float can hold.
        if not is_number or not abs(found) <= sys.float_info.max:  # type: ignore[arg-type]
            raise DataError(f"{self.place}: {name!r} is {_shown(value)}, not a finite number")
        return float(found)  # type: ignore[arg-type]

    def label(self, name: str = "label") -> int:
        """A class: a whole number as it is, a word by its number among the words of the set."""
        value = self.value(name)
        if isinstance(value, str) and WHOLE.fullmatch(value.strip()):
            value = int(value)
        is_word = isinstance(value, str) and bool(value.strip())
        if self.labels.whole if is_word else self.labels:
            raise DataError(
                f"{self.place}: {name!r} is {_shown(value)}, but other rows have "
                f"{'numbers' if is_word else 'words'}; a word's number could be one of theirs. "
                "Name all classes by words, or all by numbers"
            )
        if is_word:
            return self.labels.number(value)
        if isinstance(value, Real) and not isinstance(value, Integral):
            value = int(float(value)) if float(value).is_integer() else value
        if not isinstance(value, Integral):
            raise DataError(
                f"{self.place}: {name!r} is {_shown(value)}, not a word or a whole number"
            )
        self.labels.whole = True
        return int(value)

    def table(self, value: object, name: str) -> "Cells":
        """An object inside the row, as cells of the same place."""
        if not isinstance(value, Mapping):
            raise DataError(f"{self.place}: {name!r} has {_shown(value)}, not an object")
        return Cells(self.place, value, self.labels)

    def tables(self, name: str) -> Iterator["Cells"]:
        """The objects of a list; none if the column is missing."""
        value = self.values.get(name)
        if value is None:
            return
        if not isinstance(value, list | tuple):
            raise DataError(f"{self.place}: {name!r} is {_shown(value)}, not a list")
        for each in value:
            yield self.table(each, name)

    def selected(self, where: Where) -> bool:
        """Whether each of these columns has its value, or one of its values."""
        for name, wanted in where.items():
            values = wanted if isinstance(wanted, tuple) else (wanted,)
            if str(self.value(name)) not in map(str, values):
                return False
        return True

    def renamed(self, columns: Columns) -> "Cells":
        """The same with the fields of `columns` taken from the columns that it names."""
        if not columns:
            return self
        found = dict(self.values)
        for name, column in columns.items():
            if isinstance(column, str):
                found[name] = self.joined(column)
            else:
                found[name] = [self.joined(each) for each in column]
        return Cells(self.place, found, self.labels)

    def joined(self, column: str) -> Any:
        if column in self.values or "+" not in column:
            return self.value(column)
        parts = [str(self.values.get(part) or "") for part in column.split("+")]
        if not any(parts):
            self.value(column.split("+")[0])
        return " ".join(filter(None, parts))


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{type(value).__name__} {shown[:50]}..."
