"""Are texts of a task among those that the model was trained on?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polyvec.data.overlap.overlap import NGRAM, NONE, overlap
from polyvec.data.tasks.sets import TaskSet
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


def contaminated(
    sets: Sequence[TaskSet], training_texts: Iterable[str], where: str = "the training data"
) -> list[Contamination]:
    """The contamination of each task by the training texts, which are read once.

    Texts are compared without case, punctuation and white space. Raises DataError, beginning with
    `where`, if there is no training text.
    """
    texts = [asked(data) for data in sets]
    every = [text for each in texts for text in each]
    found = overlap(training_texts, every)
    if not found.num_train:
        raise DataError(f"{where}: no training texts")
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
