"""The section [[step]] of recipes: how rows of training data are made, one step after another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polyvec.recipe import Section, register
from polyvec.settings import fill


@dataclass(frozen=True, slots=True)
class StepSettings:
    """A step by its kind; its own settings are checked against the kind's before anything runs."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def _read(raw: dict[str, Any], where: str) -> StepSettings:
    # A resolved recipe has the kind's own settings in a table of this name.
    own = {**raw.get("settings", {}), **raw}
    own = {key: value for key, value in own.items() if key not in ("kind", "settings")}
    common = {"kind": raw["kind"]} if "kind" in raw else {}
    found: StepSettings = fill(StepSettings, {**common, "settings": own}, where)
    return found


STEPS: Section[tuple[StepSettings, ...]] = register(
    Section("step", _read, repeated=True, scales=True, default=())
)
