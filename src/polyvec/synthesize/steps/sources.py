"""Where rows begin: a text each, or a point of a grid of words each."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from polyvec.errors import DataError, SettingsError
from polyvec.settings import check_seed
from polyvec.synthesize.reading import with_values
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import STEPS, Step, Tools

T = TypeVar("T")


def check_limit(kind: str, limit: int | None, seed: int) -> None:
    """Raises an error for a limit or seed that a step cannot draw by."""
    check_seed(seed)
    if limit is not None and limit < 1:
        raise SettingsError(f"step {kind!r}: limit {limit} must be 1 or more")


def limited(items: list[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` of the items, drawn by seed, in their order."""
    if limit is None or len(items) <= limit:
        return items
    order = np.random.default_rng(seed).permutation(len(items))
    return [items[place] for place in sorted(order[:limit].tolist())]


@STEPS.register("texts")
@dataclass(frozen=True)
class Texts(Step):
    """A row for each text of the run, as its anchor or positive.

    min_words, max_words: of texts that are taken. limit: the most, drawn by seed.
    """

    to: Literal["anchor", "positive"] = "positive"
    min_words: int = 1
    max_words: int | None = None
    limit: int | None = None
    seed: int = 0

    free = True

    def __post_init__(self) -> None:
        check_limit("texts", self.limit, self.seed)

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        if rows:
            raise SettingsError("step 'texts' must be the first: rows of earlier steps would go")
        found = Changed()
        for record in tools.texts:
            length = len(record.text.split())
            row = with_values(Row(meta={"id": record.id}), {self.to: record.text})
            if length < max(1, self.min_words):
                found.reject(row, f"shorter than {max(1, self.min_words)} words")
            elif self.max_words is not None and length > self.max_words:
                found.reject(row, f"longer than {self.max_words} words")
            else:
                found.keep(row)
        if not found.kept:
            raise DataError(f"step 'texts': none of the {len(tools.texts)} texts is taken")
        found.kept = limited(found.kept, self.limit, self.seed)
        return found


@STEPS.register("grid")
@dataclass(frozen=True)
class Grid(Step):
    """Rows without texts: every combination of values, as fields of meta, `repeat` times each.

    With `limit`, so many combinations drawn by seed. Equal prompts get different answers as long
    as their temperature is above 0.
    """

    values: Mapping[str, Sequence[Any]]
    repeat: int = 1
    limit: int | None = None
    seed: int = 0

    free = True

    def __post_init__(self) -> None:
        check_limit("grid", self.limit, self.seed)
        for name, each in self.values.items():
            if not each:
                raise SettingsError(f"step 'grid': {name!r} has no values")
        if self.repeat < 1:
            raise SettingsError(f"step 'grid': repeat {self.repeat} must be 1 or more")

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        if rows:
            raise SettingsError("step 'grid' must be the first: rows of earlier steps would go")
        names = list(self.values)
        points = list(itertools.product(*self.values.values())) * self.repeat
        numbered = enumerate(limited(points, self.limit, self.seed))
        return Changed(
            [Row(meta={"id": f"grid-{i}", **dict(zip(names, p, strict=True))}) for i, p in numbered]
        )
