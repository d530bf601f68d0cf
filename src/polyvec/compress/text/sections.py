"""The section [text_compressor] of recipes."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from polyvec.errors import SettingsError
from polyvec.recipe import Section, register
from polyvec.settings import fill

if TYPE_CHECKING:
    from polyvec.compress.text.compressor import TextCompressor
    from polyvec.compress.text.writers import TextWriter

Unit = Literal["token", "word", "phrase", "sentence", "passage"]


@dataclass(frozen=True, slots=True)
class CoarseSettings:
    """A first choice among larger units: `compressor.Coarse`."""

    scorer: Mapping[str, Any]
    unit: Unit = "passage"
    factor: float = 1.0
    extra: int = 0


@dataclass(frozen=True, slots=True)
class TextCompressorSettings:
    """Settings of `TextCompressor`; rate and threshold hold where a call gives no budget.

    writer: a table with a kind, in place of a scorer: a model writes the shorter text.
    """

    scorer: Mapping[str, Any] | None = None
    writer: Mapping[str, Any] | None = None
    unit: Unit = "word"
    tokenizer: str | None = None
    coarse: tuple[Mapping[str, Any], ...] = ()
    keep_words: tuple[str, ...] = ()
    keep_digits: bool = False
    exact: bool | None = None
    threshold: float | None = None
    rate: float | None = None
    order: Literal["original", "score"] = "original"
    dynamic_ratio: float = 0.0


def _read(raw: dict[str, Any], where: str) -> TextCompressorSettings:
    found: TextCompressorSettings = fill(TextCompressorSettings, raw, where)
    if (found.scorer is None) == (found.writer is None):
        raise SettingsError(f"{where} needs a scorer or a writer, one of the two")
    for number, each in enumerate(found.coarse):
        fill(CoarseSettings, each, f"{where} key 'coarse'[{number}]")
    return found


def build(
    settings: TextCompressorSettings, model: Any, scale: str, **options: Any
) -> "TextCompressor | TextWriter":
    """The compressor of a section; `model` and `scale` are those of `Recipe.build`."""
    from polyvec.compress.text.compressor import Coarse, TextCompressor
    from polyvec.compress.text.writers import WRITERS

    own = {each.name: getattr(settings, each.name) for each in fields(settings)}
    scorer, writer = own.pop("scorer"), own.pop("writer")
    coarse, rate = own.pop("coarse"), own.pop("rate")
    if writer is not None:
        table = {key: value for key, value in writer.items() if key != "kind"}
        table |= {"tokenizer": settings.tokenizer, "default_rate": rate, **options}
        return WRITERS.build(writer.get("kind", ""), table, where="[text_compressor]")
    stages = [Coarse(**each) for each in coarse]
    return TextCompressor(scorer, coarse=stages, default_rate=rate, **{**own, **options})


TEXT_COMPRESSOR: Section[TextCompressorSettings | None] = register(
    Section("text_compressor", functools.partial(_read), scales=True, build=build)
)
