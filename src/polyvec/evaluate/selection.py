"""Which tasks a user means: folders, tasks by name, all of a kind, or all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyvec.data.tasks.named import NamedTask, all_tasks, named_task
from polyvec.data.tasks.readers import TaskSet, read_folder
from polyvec.errors import DataError, InputError, known

Published = dict[tuple[str, str, str], float]
KINDS = ("sts", "retrieval", "classification", "clustering", "pair", "bitext", "summarization")


@dataclass(frozen=True, slots=True)
class Chosen:
    """One data set to measure, read when it is its turn; or one subset of a task."""

    name: str
    subset: str = ""
    task: NamedTask | None = None
    folder: Path | None = None
    split: str = "test"
    kind: str | None = None
    official_task: str = ""
    published: float | None = None
    known_difference: str = ""

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
    published: Published | None = None,
) -> list[Chosen]:
    """Every data set that is meant, in order.

    A folder stands for itself; a name, a kind ("sts") or "all" for tasks below `data`, where
    "all" and kinds leave out what does not lie there. With `subsets` only those of each task;
    with `published` only what has a published score is taken from "all" and kinds.
    """
    found: list[Chosen] = []
    for each in wanted:
        if Path(each).is_dir() and (data is None or each not in _names()):
            found.append(Chosen(Path(each).resolve().name, "", None, Path(each), split, kind))
            continue
        for task, every in _tasks(each, data):
            found.extend(_of_task(task, subsets, published or {}, every and published is not None))
    if not found:
        raise DataError(f"no task of {', '.join(wanted)} lies in {data}")
    return found


def _tasks(name: str, data: str | Path | None) -> Iterator[tuple[NamedTask, bool]]:
    """Tasks of a name, a kind or all, and whether it was not the task's own name."""
    if "/" in name or "\\" in name:
        raise DataError(f"{name}: no such folder")
    if data is None:
        raise DataError(
            f"{name!r} is no folder."
            + (
                " It is a task by name: say with --data where the folder of data sets is."
                if name in (*_names(), *KINDS, "all")
                else known(name, _names())
            )
        )
    if not Path(data).is_dir():
        raise DataError(f"{data}: no such folder")
    if name not in (*KINDS, "all"):
        yield named_task(name, data), False
        return
    for task in all_tasks(data):
        if name in ("all", task.layout.kind) and _lies_there(task):
            yield task, True


def _of_task(
    task: NamedTask, subsets: Sequence[str], published: Published, only_published: bool
) -> Iterator[Chosen]:
    known_subsets = task.subsets()
    for subset in subsets:
        if subset not in known_subsets and len(known_subsets) > 1:
            raise InputError(f"{task.name}: no subset {subset!r}." + known(subset, known_subsets))
    for subset in known_subsets:
        if subsets and len(known_subsets) > 1 and subset not in subsets:
            continue
        official_task = task.official_task(subset)
        score = published.get(official_task)
        if only_published and score is None:
            continue
        yield Chosen(
            task.name,
            subset,
            task,
            official_task=official_task[0],
            published=score,
            known_difference=task.naming.known_difference,
        )


def _lies_there(task: NamedTask) -> bool:
    first = task.layout.files[0] if task.layout.files else task.layout.corpus
    return (task.root / first.split("/")[0]).is_dir()


def _names() -> tuple[str, ...]:
    return tuple(task.name for task in all_tasks("."))
