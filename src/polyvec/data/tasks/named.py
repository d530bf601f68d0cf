"""Tasks by name: where their data stands, and the published task that each corresponds to."""

import functools
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyvec.data.tasks.readers import TaskSet, read_task
from polyvec.data.tasks.rows import Layout, subsets_of
from polyvec.errors import DataError, known
from polyvec.settings import fill

FILE = Path(__file__).with_name("named_tasks.toml")


@dataclass(frozen=True, slots=True)
class Naming:
    """Subsets of a task, and what the published task calls task, split and subset.

    Subsets are listed, or the values of a column, or all ordered pairs of languages. `cause`
    says why scores on this copy may differ from those published.
    """

    subsets: tuple[str, ...] = ()
    subset_column: str = ""
    pairs_of: tuple[str, ...] = ()
    pairs_with_itself: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    official_task: str = ""
    official_split: str = ""
    official_subset: str = ""
    known_difference: str = ""


@dataclass(frozen=True, slots=True)
class NamedTask:
    """A task of the table, below a folder of data sets."""

    name: str
    layout: Layout
    naming: Naming
    root: Path

    def subsets(self) -> tuple[str, ...]:
        """Names of its subsets; one empty name if it has none."""
        naming = self.naming
        if naming.subset_column:
            return subsets_of(self.root, self.layout.files[0], naming.subset_column)
        if naming.pairs_of:
            return tuple(
                f"{a}:{b}"
                for a in naming.pairs_of
                for b in naming.pairs_of
                if a != b or naming.pairs_with_itself
            )
        return naming.subsets or ("",)

    def read(self, subset: str = "") -> TaskSet:
        """The data of a subset. Raises DataError naming file, line and id."""
        return read_task(self.layout, self.root, self.name, subset)

    def official_task(self, subset: str = "") -> tuple[str, str, str]:
        """What the published task, its split and its subset are called; empty without one."""
        naming = self.naming
        if not naming.official_task:
            return "", "", ""
        told = "-".join(naming.names.get(part, part) for part in subset.split(":"))
        shaped = naming.official_subset.replace("{subset}", told) or told or "default"
        return naming.official_task, naming.official_split or self.layout.split, shaped


def all_tasks(root: str | Path) -> Iterator[NamedTask]:
    """Every task of the table, below a folder of data sets that may or may not hold it."""
    for name, (layout, naming) in _table().items():
        yield NamedTask(name, layout, naming, Path(root))


def named_task(name: str, root: str | Path) -> NamedTask:
    """The task of a name; DataError, with a suggestion, if there is none."""
    if name not in _table():
        raise DataError(f"{name!r} is no folder and no task." + known(name, _table()))
    layout, naming = _table()[name]
    return NamedTask(name, layout, naming, Path(root))


@functools.cache
def _table() -> dict[str, tuple[Layout, Naming]]:
    raw: dict[str, dict[str, Any]] = tomllib.loads(FILE.read_text("utf-8"))
    of_naming = set(Naming.__dataclass_fields__)
    return {
        name: (
            fill(Layout, {k: v for k, v in each.items() if k not in of_naming}, f"[{name}]"),
            fill(Naming, {k: v for k, v in each.items() if k in of_naming}, f"[{name}]"),
        )
        for name, each in raw.items()
    }


def read_published(path: str | Path) -> dict[tuple[str, str, str], float]:
    """Published main scores, as fractions, by (task, split, subset).

    The file is JSON: {"scores": {task: {"split/subset": score}}}; scores that are no number are
    left out. Raises DataError for another form.
    """
    try:
        raw = json.loads(Path(path).read_text("utf-8"))
        found = {
            (task, *where.split("/", 1)): float(score)
            for task, scores in raw["scores"].items()
            for where, score in scores.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no published scores can be read there ({error!r})") from None
    return {key: score for key, score in found.items() if math.isfinite(score)}
