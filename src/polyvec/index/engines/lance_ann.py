"""The approximate index of dense vectors: its kind, and settings with which it finds enough."""

from collections.abc import Callable, Sequence
from typing import Any

from lancedb.index import IvfFlat, IvfRq

from polyvec.index.engines.interface import Description
from polyvec.index.engines.scoring import METRICS

# (nprobes, refine): partitions that a query reads, and how many texts, for each that is asked for,
# are compared by their floats. The library's own defaults gave a recall of 0.74 (docs/search.md).
SETTINGS = ((20, 10), (40, 20), (80, 40), (160, 80))
NO_INDEX = (0, 0)
RECALL, NEAREST, SAMPLE = 0.99, 10, 50
NARROW = 64  # numbers below which a bit for each says too little: no quantisation
ROTATED = 8  # Lance's RaBitQ takes widths that are a multiple of this; others get no index


def is_possible(description: Description) -> bool:
    """Whether the vectors can have an approximate index."""
    width = description.dimensions.get("dense")
    return width is not None and description.similarity in METRICS and width % ROTATED == 0


def config(description: Description, rows: int) -> Any:
    """IVF with RaBitQ's bits (Gao and Long 2024, arXiv:2405.12497), or floats if they are few."""
    kind = IvfFlat if description.dimensions["dense"] < NARROW else IvfRq
    return kind(
        distance_type=METRICS[description.similarity], num_partitions=max(1, round(rows**0.5))
    )


def settings(
    nearest: Callable[[tuple[int, int]], Sequence[Sequence[str]]], own: Sequence[str]
) -> tuple[int, int]:
    """The first of SETTINGS with which queries find RECALL of what exact search finds.

    `nearest` gives the ids that each of a sample of stored vectors finds with some settings, and
    `own` are theirs, which say nothing. NO_INDEX if no settings do.
    """
    exact = [set(found) - {name} for found, name in zip(nearest(NO_INDEX), own, strict=True)]
    for each in SETTINGS:
        hits = sum(len(one & set(found)) for one, found in zip(exact, nearest(each), strict=True))
        if hits >= RECALL * sum(map(len, exact)):
            return each
    return NO_INDEX
