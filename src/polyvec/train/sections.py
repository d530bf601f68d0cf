"""The section [[stage]] of recipes."""

import dataclasses
from typing import Any

from polyvec.recipe import Section, register
from polyvec.settings import fill
from polyvec.train.mining.settings import mining_settings
from polyvec.train.settings import StageSettings, check_numbers

COMMON = {each.name for each in dataclasses.fields(StageSettings)} - {"settings"}


def _read(raw: dict[str, Any], where: str) -> StageSettings:
    common = {key: value for key, value in raw.items() if key in COMMON}
    # A resolved recipe has the kind's own settings in a table of this name.
    own = dict(raw.get("settings", {}))
    own |= {key: value for key, value in raw.items() if key not in COMMON and key != "settings"}
    # Keys of the kind's own are checked against its signature, which needs torch: before a run.
    found: StageSettings = fill(StageSettings, {**common, "settings": own}, where)
    check_numbers(found, where)
    if found.mining:
        mining_settings(found.mining, f"{where} mining")
    return found


STAGES: Section[tuple[StageSettings, ...]] = register(
    Section("stage", _read, repeated=True, scales=True, default=())
)
