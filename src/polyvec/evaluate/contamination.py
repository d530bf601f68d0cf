"""Are texts of a task in the files that the model was trained on?"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from polyvec.data.overlap.contamination import Contamination, contaminated
from polyvec.data.tasks.sets import TaskSet
from polyvec.data.texts import read_jsonl, read_lines
from polyvec.errors import DataError


def contaminations(sets: Sequence[TaskSet], files: Sequence[str | Path]) -> list[Contamination]:
    """The contamination of each task by the training files, which are read once.

    Files are .txt (one text per line) or .jsonl (every string in a row), gzipped or not. Raises
    DataError for files without texts.
    """
    return contaminated(sets, training_texts(files), ", ".join(map(str, files)))


def training_texts(files: Sequence[str | Path]) -> Iterator[str]:
    """Every text of the files, in order."""
    for name in files:
        path = Path(name)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
        if kind == "txt":
            yield from (line for _, line in read_lines(path) if line.strip())
        elif kind == "jsonl":
            for _, row in read_jsonl(path):
                yield from _strings(row)
        else:
            raise DataError(f"{path}: not a .txt or .jsonl file of training texts, gzipped or not")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
