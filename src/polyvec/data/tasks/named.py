"""Tasks by name: where their data is, and the official task that each corresponds to."""

import functools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyvec.data.tasks.folder import read_task
from polyvec.data.tasks.kinds import task_kind
from polyvec.data.tasks.sets import TaskSet
from polyvec.data.tasks.source import TaskSource, subsets_of
from polyvec.errors import DataError, known
from polyvec.settings import fill

FILE = Path(__file__).with_name("named_tasks.toml")

# (task, split, subset), as the benchmark calls them; empty names where there is no such task.
OfficialName = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Naming:
    """Subsets of a task, and what the official task calls task, split and subset.

    Subsets are listed, or the values of a column, or all ordered pairs of languages.
    `known_difference` says why scores on this copy may differ from those published.
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
    source: TaskSource
    naming: Naming
    root: Path

    @property
    def kind(self) -> str:
        return task_kind(self.source.kind, self.name).name

    def subsets(self) -> tuple[str, ...]:
        """Names of its subsets; one empty name if it has none."""
        naming = self.naming
        if naming.subset_column:
            return subsets_of(self.root, self.source.files[0], naming.subset_column)
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
        return read_task(self.source, self.root, self.name, subset)

    def official_name(self, subset: str = "") -> OfficialName:
        """What the official task, its split and its subset are called."""
        naming = self.naming
        if not naming.official_task:
            return "", "", ""
        # "eng:deu" here is "eng_Latn-deu_Latn" there.
        renamed = "-".join(naming.names.get(half, half) for half in subset.split(":"))
        official = naming.official_subset.replace("{subset}", renamed) or renamed or "default"
        return naming.official_task, naming.official_split or self.source.split, official


def all_tasks(root: str | Path) -> Iterator[NamedTask]:
    """Every task of the table, below a folder that need not contain its data."""
    for name, (source, naming) in _table().items():
        yield NamedTask(name, source, naming, Path(root))


def named_task(name: str, root: str | Path) -> NamedTask:
    """The task of a name; DataError, with a suggestion, if there is none."""
    if name not in _table():
        raise DataError(f"{name!r} is neither a folder nor a task.{known(name, _table())}")
    source, naming = _table()[name]
    return NamedTask(name, source, naming, Path(root))


@functools.cache
def _table() -> dict[str, tuple[TaskSource, Naming]]:
    raw: dict[str, dict[str, Any]] = tomllib.loads(FILE.read_text("utf-8"))
    of_naming = set(Naming.__dataclass_fields__)
    return {
        name: (
            fill(TaskSource, {k: v for k, v in each.items() if k not in of_naming}, f"[{name}]"),
            fill(Naming, {k: v for k, v in each.items() if k in of_naming}, f"[{name}]"),
        )
        for name, each in raw.items()
    }
