"""The sections [victim] and [inverter] of recipes."""

import functools
from typing import Any

from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import SettingsError
from polyvec.invert.settings import InverterSettings, check
from polyvec.recipe import Section, register
from polyvec.settings import fill


def _compose(settings: EmbedderSettings, model: Any, scale: str, **options: Any) -> Any:
    from polyvec.embed.compose import compose  # imports torch

    return compose(settings, **options)


def _read(raw: dict[str, Any], where: str) -> InverterSettings:
    found: InverterSettings = fill(InverterSettings, raw, where)
    check(found, where)
    return found


def _build(settings: InverterSettings, model: Any, scale: str, **options: Any) -> Any:
    from polyvec.invert.inverter import Inverter

    if model is None:
        raise SettingsError("a recipe with [inverter] needs [victim], the model that is attacked")
    return Inverter.untrained(settings, model)


# Whose vectors are inverted: the settings of an [embedder].
VICTIM: Section[EmbedderSettings | None] = register(
    Section("victim", functools.partial(fill, EmbedderSettings), scales=True, build=_compose)
)
INVERTER: Section[InverterSettings | None] = register(
    Section("inverter", _read, scales=True, build=_build, after=("victim",))
)
