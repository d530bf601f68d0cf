"""The section [compressor] of recipes."""

from typing import Any

from polyvec.compress.soft.settings import CompressorSettings, check
from polyvec.recipe import Section, register
from polyvec.settings import fill


def _read(raw: dict[str, Any], where: str) -> CompressorSettings:
    found: CompressorSettings = fill(CompressorSettings, raw, where)
    check(found, where)
    return found


def _build(settings: CompressorSettings, model: Any, scale: str, **options: Any) -> Any:
    from polyvec.compress.soft.compressor import SoftCompressor  # imports torch

    return SoftCompressor(model, settings)


COMPRESSOR: Section[CompressorSettings | None] = register(
    Section("compressor", _read, scales=True, build=_build, after=("embedder",))
)
