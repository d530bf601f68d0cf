"""The sections [embedder] and [released] of recipes."""

import functools
from dataclasses import replace
from inspect import signature
from typing import Any

from polyvec.embed.released import Released, read_released
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import SettingsError
from polyvec.recipe import Recipe, Section, register
from polyvec.settings import fill


def _build(settings: EmbedderSettings, model: Any, scale: str, **options: Any) -> Any:
    from polyvec.embed.compose import compose  # imports torch
    from polyvec.embed.formats.sources import model_folder
    from polyvec.embed.part import one_of

    backbone = options.pop("backbone", None)
    for name in options:
        one_of("build: option", name, ["backbone", *list(signature(model_folder).parameters)[1:]])
    if backbone is not None:
        options["published"] = True
        settings = replace(settings, backbone=str(backbone))
    return compose(settings, **options)


# None for a recipe of another kind: one that compresses has no embedder.
EMBEDDER: Section[EmbedderSettings | None] = register(
    Section(
        "embedder",
        functools.partial(fill, EmbedderSettings),
        scales=True,
        build=_build,
    )
)

# None for a recipe of ours, which nobody released.
RELEASED: Section[Released | None] = register(Section("released", read_released))


def embedder_settings(recipe: Recipe, scale: str) -> EmbedderSettings:
    """The section [embedder]; SettingsError for a recipe that has none."""
    found = recipe.at(EMBEDDER, scale)
    if found is None:
        raise SettingsError(f"{recipe.path}: has no section [embedder], so it makes no vectors")
    return found
