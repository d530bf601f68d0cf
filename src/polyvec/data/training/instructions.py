"""What to do with the texts of well-known data sets, in the words of their papers."""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polyvec.data.training.rows import TrainingRow
from polyvec.errors import DataError, known
from polyvec.settings import table

FILE = Path(__file__).with_name("instructions.toml")


@dataclass(frozen=True, slots=True)
class StoredInstruction:
    """An instruction; `symmetric`: documents take it, too."""

    instruction: str
    symmetric: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """How a text is rendered: as a "query" or a "document", with an instruction.

    Without one, the role's prompt stands before the text.
    """

    role: str
    instruction: str | None


def query_side(row: TrainingRow) -> Side:
    return Side("query", row.instruction)


def document_side(row: TrainingRow) -> Side:
    """The side of a row's documents: that of its query if both are the same kind of text."""
    if row.symmetric:
        return query_side(row)
    return Side("document", row.document_instruction)


def stored_instruction(name: str, place: str = "") -> StoredInstruction:
    """The instruction of a data set's name; DataError, with a suggestion, if there is none."""
    found = stored_instructions()
    if name not in found:
        raise DataError(f"{place or name}: no stored instruction for {name!r}.{known(name, found)}")
    return found[name]


@functools.cache
def stored_instructions() -> Mapping[str, StoredInstruction]:
    found: Mapping[str, StoredInstruction] = table(
        StoredInstruction, tomllib.loads(FILE.read_text("utf-8")), FILE.name
    )
    return found
