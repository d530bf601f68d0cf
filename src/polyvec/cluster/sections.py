"""The section [clustering] of recipes."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyvec.recipe import Section, register
from polyvec.settings import fill

MAX_CHARACTERS = 1500  # of a text that a prompt shows; about 400 tokens


@dataclass(frozen=True, slots=True)
class ClusteringSettings:
    """Settings of `TextClusterer`; k and choose_by hold where a call gives none."""

    method: Mapping[str, Any] | str = "kmeans"
    k: int | str | None = None
    choose_by: str = "silhouette"
    feedback: tuple[Mapping[str, Any], ...] = ()
    noun: str = "text"
    facet: str = "topic"
    answers: str = "text"
    max_characters: int = MAX_CHARACTERS
    standardize: bool = False
    name: bool = True


CLUSTERING: Section[ClusteringSettings | None] = register(
    Section("clustering", functools.partial(fill, ClusteringSettings), scales=True)
)
