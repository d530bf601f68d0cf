"""Are texts of a task among those that the model was trained on?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyvec.data.overlap.overlap import NGRAM, NONE, overlap
from polyvec.data.tasks.sets import TaskSet
from polyvec.data.texts import read_jsonl, read_lines
from polyvec.errors import DataError


@dataclass(frozen=True, slots=True)
class Contamination:
    """How many of a task's texts are in the training texts, whole or by an n-gram of words."""

    num_texts: int
    num_same: int
    num_ngram: int

    def __str__(self) -> str:
        whole = f"{self.num_same} of {self.num_texts} texts are in the training texts"
        return f"{whole}, {self.num_ngram} share {NGRAM} consecutive words (or all they have)"


def contaminations(sets: Sequence[TaskSet], files: Sequence[str | Path]) -> list[Contamination]:
    """The contamination of each task by the training files, which are read once.

    Files are .txt (one text per line) or .jsonl (every string in a row), gzipped or not. Texts
    are compared without case, punctuation and white space. Raises DataError for files without
    texts.
    """
    texts = [asked(data) for data in sets]
    every = [text for each in texts for text in each]
    found = overlap(training_texts(files), every)
    if not found.num_train:
        raise DataError(f"{', '.join(map(str, files))}: no training texts")
    result, start = [], 0
    for each in texts:
        part = slice(start, start + len(each))
        start += len(each)
        same, shared = found.same_rows[part] != NONE, found.ngram_shares[part] > 0
        result.append(Contamination(len(each), int(same.sum()), int(shared.sum())))
    return result


def asked(data: TaskSet) -> list[str]:
    """The distinct texts that a task asks about: its queries, or all texts if it has none."""
    found = list(dict.fromkeys(data.asked_texts()))
    if not found:
        raise DataError(f"{data.name}: a {data.kind} task names no texts to look for in training")
    return found


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
