"""The sections [encoder] and [compressor] of recipes."""

import functools
from typing import Any

from polyvec.compress.soft.settings import CompressorSettings, check
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import SettingsError
from polyvec.recipe import Section, register
from polyvec.settings import fill


def _compose(settings: EmbedderSettings, model: Any, scale: str, **options: Any) -> Any:
    from polyvec.embed.compose import compose  # imports torch

    return compose(settings, **options)


def _read(raw: dict[str, Any], where: str) -> CompressorSettings:
    found: CompressorSettings = fill(CompressorSettings, raw, where)
    check(found, where)
    return found


def _build(settings: CompressorSettings, model: Any, scale: str, **options: Any) -> Any:
    from polyvec.compress.soft.compressor import SoftCompressor

    if model is None:
        raise SettingsError("a recipe with [compressor] needs [encoder], the model that reads")
    return SoftCompressor(model, settings)


# What reads contexts: the settings of an [embedder], whose vectors nobody asks for.
ENCODER: Section[EmbedderSettings | None] = register(
    Section("encoder", functools.partial(fill, EmbedderSettings), scales=True, build=_compose)
)
COMPRESSOR: Section[CompressorSettings | None] = register(
    Section("compressor", _read, scales=True, build=_build, after=("encoder",))
)
