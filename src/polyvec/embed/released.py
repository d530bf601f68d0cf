"""The section [released] of recipes: the authors' code and what a recipe was compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from polyvec.errors import SettingsError, known
from polyvec.settings import fill

COMPARED = ("ids", "pooled", "vectors")


@dataclass(frozen=True, slots=True)
class Released:
    """How a recipe relates to what its authors released.

    code: "owner/name@commit, file", or "" if none was found.
    checkpoint: hub id of the published weights.
    form: "released" if the recipe is the released code's form, "survey" if it is the survey's or
        the paper's; `differs` then says how the released code differs.
    compared: which of ids, pooled positions and vectors equal those of the authors' code, on
        equal tiny weights; `why` says why nothing could be compared.
    """

    code: str
    form: Literal["released", "survey"]
    compared: tuple[str, ...] = ()
    checkpoint: str = ""
    differs: str = ""
    why: str = ""


def read_released(raw: Mapping[str, Any], where: str) -> Released:
    """The section of a recipe; SettingsError for what contradicts itself."""
    found: Released = fill(Released, raw, where)
    for name in found.compared:
        if name not in COMPARED:
            raise SettingsError(f"{where} compared: {name!r} is not known.{known(name, COMPARED)}")
    if bool(found.compared) == bool(found.why):
        raise SettingsError(f"{where} needs either `compared`, or `why` nothing was compared")
    if found.form == "survey" and not found.differs:
        raise SettingsError(f"{where} form 'survey' needs `differs`: how the released code differs")
    return found
