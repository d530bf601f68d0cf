"""The section [expect] of recipes: figures measured here, by scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyvec.errors import SettingsError
from polyvec.recipe import SCALES, Section, register
from polyvec.settings import known_keys, table


@dataclass(frozen=True, slots=True)
class Expectation:
    """A figure measured here: `polyvec recipes check` measures it again and compares.

    untrained: the embedder's figure before the recipe's stages; where it is given, the others are
    those of the trained one.
    """

    at_least: float
    measured: float
    untrained: float | None = None


# By scale, then by "<data folder> <split> <measure>", such as "stsb test spearman".
Figures = Mapping[str, Mapping[str, Expectation]]


def _read(raw: dict[str, Any], where: str) -> Figures:
    known_keys(raw, SCALES, where)
    figures = {}
    for scale, rows in raw.items():
        place = f"{where[:-1]}.{scale}]"
        figures[scale] = table(Expectation, rows, place)
        for key in rows:
            if len(key.split()) != 3:
                raise SettingsError(f"{place} {key!r} is not '<data folder> <split> <measure>'")
    return figures


EXPECT: Section[Figures] = register(Section("expect", _read, default={}))
