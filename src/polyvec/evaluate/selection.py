"""Which tasks a user means: folders, tasks by name, all of a kind, or all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.kinds import KINDS, find_kind
from polyvec.data.tasks.named import NamedTask, OfficialName, all_tasks, named_task
from polyvec.data.tasks.sets import TaskSet
from polyvec.errors import DataError, InputError, known


@dataclass(frozen=True, slots=True)
class Chosen:
    """One data set to measure: a folder, or one subset of a task. It is read when needed.

    `by_name` is false for what "all" or a kind selected.
    """

    name: str
    subset: str = ""
    task: NamedTask | None = None
    folder: Path | None = None
    split: str = "test"
    kind: str | None = None
    by_name: bool = True

    @property
    def official_name(self) -> OfficialName:
        """What the official task, its split and its subset are called; empty names for none."""
        return self.task.official_name(self.subset) if self.task else ("", "", "")

    def read(self) -> TaskSet:
        """Its data. Raises DataError naming file, line and id."""
        if self.task is not None:
            return self.task.read(self.subset)
        assert self.folder is not None
        return read_folder(self.folder, self.split, self.kind)


def select(
    wanted: Sequence[str],
    *,
    data: str | Path | None = None,
    split: str = "test",
    kind: str | None = None,
    subsets: Sequence[str] = (),
) -> list[Chosen]:
    """Every data set that is wanted, in order.

    `wanted` are folders, and names of tasks below the folder `data`, kinds ("sts") or "all"; the
    last two select only tasks whose files are there. `subsets` limits tasks that have some; what
    "all" or a kind selects need not have each of them. `split` and `kind` are those of folders.
    """
    found: list[Chosen] = []
    for each in wanted:
        if Path(each).is_dir() and (data is None or each not in _names()):
            path = Path(each)
            found.append(Chosen(path.resolve().name, folder=path, split=split, kind=kind))
            continue
        for task, by_name in _tasks(each, data):
            found += [
                Chosen(task.name, subset, task, by_name=by_name)
                for subset in _subsets(task, subsets, by_name)
            ]
    if not found:
        raise DataError(f"no data of {', '.join(wanted)} in {data}")
    if kind and not any(each.folder for each in found):
        raise InputError(f"kind {kind!r} has no effect: it is for folders, and none is given")
    for subset in subsets:
        if all(each.subset != subset for each in found):
            raise InputError(f"subset {subset!r} has no effect: none of the tasks has it")
    return found


def _tasks(name: str, data: str | Path | None) -> Iterator[tuple[NamedTask, bool]]:
    """Tasks of a name, a kind or all, and whether it is the task's own name."""
    if "/" in name or "\\" in name:
        raise DataError(f"{name}: no such folder")
    official = [task for task in all_tasks(data or ".") if task.naming.official_task == name]
    if official and name not in _names():
        # SciFact and XNLI as MTEB calls them, where there is no task of that name here.
        if data is None:
            raise DataError(f"{name!r} is a task: give the folder of data sets with --data.")
        found = [task for task in official if _has_data(task)] or official
        yield from ((task, len(found) == 1) for task in found)
        return
    kind = find_kind(name)
    is_task = name in _names()
    if data is None:
        if is_task or kind or name == "all":
            hint = " It is a task or a kind of task: give the folder of data sets with --data."
        else:
            hint = known(name, (*_names(), *KINDS))
        raise DataError(f"{name!r} is not a folder.{hint}")
    if not Path(data).is_dir():
        raise DataError(f"{data}: no such folder")
    if is_task or (kind is None and name != "all"):
        yield named_task(name, data), True
        return
    for task in all_tasks(data):
        if (kind is None or task.kind == kind.name) and _has_data(task):
            yield task, False


def _subsets(task: NamedTask, wanted: Sequence[str], by_name: bool) -> Sequence[str]:
    """The wanted subsets of a task, or all it has."""
    found = task.subsets()
    if not wanted or len(found) == 1:
        return found
    for subset in wanted:
        if by_name and subset not in found:
            raise InputError(f"{task.name}: no subset {subset!r}.{known(subset, found)}")
    return [subset for subset in found if subset in wanted]


def _has_data(task: NamedTask) -> bool:
    first = task.source.files[0] if task.source.files else task.source.corpus
    return (task.root / first.split("/")[0]).is_dir()


def _names() -> tuple[str, ...]:
    return tuple(task.name for task in all_tasks("."))
