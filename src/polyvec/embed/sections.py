"""The section [embedder] of recipes."""

import functools
from typing import Any

from polyvec.embed.settings import EmbedderSettings
from polyvec.recipe import Section, register
from polyvec.settings import fill


def _build(settings: EmbedderSettings, model: Any, scale: str, **options: Any) -> Any:
    from polyvec.embed.compose import compose  # imports torch

    return compose(settings, **options)


EMBEDDER: Section[EmbedderSettings] = register(
    Section(
        "embedder",
        functools.partial(fill, EmbedderSettings),
        required=True,
        scales=True,
        build=_build,
    )
)
