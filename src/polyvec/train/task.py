"""What a stage teaches: examples become pieces of work, their results a loss.

To add a stage: a class with these methods, its line in tasks.TASKS, a recipe that uses it. Its
constructor's arguments are its settings in [[stage]]; "embedder" and "stage" (its StageSettings)
are facts that fill themselves. A stage that trains nothing is a Change instead. What a task may
have beside the protocol: `needs_head`, True if its loss reads the language model's head;
`prepare(rows)`, called with all rows of the stage before the first batch; `trained()` and
`save(output)`, of a stage that trains a model of its own, which says what it trains and writes it
into the run's folder at the end; its `cost` is the meter's; and `batch_number`,
which the trainer sets before `work`: the number of the batch in the run, so that what is drawn
(masks) is the same in every process and after a resume.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.embedder import Embedder
from polyvec.train.engine import Piece, Rows, Terms

# A job's result: a tensor with one row for each text of the payload, with gradient.
Job = Callable[[Embedder, Any], Tensor]


@dataclass(frozen=True, slots=True)
class Share:
    """The rows of a batch that this process computes: `start` to `stop` of the whole batch."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Work:
    """A batch as a process works on it.

    pieces: what this process computes, of its share of the batch.
    order: for each job, the place of each result (pieces are sorted by length): of this process's
        results among its own, or of those of all processes, one after another, in the batch.
    sizes: for each job, how many results each process has, in the order of the processes.
    facts: what the loss needs beside the results, of the whole batch: the same in all processes.
    num_tokens, num_computed_tokens: real tokens of the pieces, and those with padding.
    num_texts, num_cut: texts of the pieces, and those of them that were cut at the most tokens.
    """

    pieces: tuple[Piece, ...]
    order: Mapping[str, Tensor]
    sizes: Mapping[str, tuple[int, ...]]
    facts: Any
    num_tokens: int
    num_computed_tokens: int
    num_texts: int = 0
    num_cut: int = 0

    def ordered(self, rows: Rows) -> Rows:
        """Results in the order of the batch."""
        found = {}
        for job, results in rows.items():
            places = self.order[job].to(results.device)
            found[job] = torch.empty_like(results).index_copy(0, places, results)
        return found


class Task(Protocol):
    """A stage's kind.

    jobs: what its pieces are called and computed by.
    heads: modules with weights that the loss trains beside the embedder; not saved with it.
    """

    jobs: Mapping[str, Job]
    heads: nn.Module

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        """The batch `rows`, of which `shares[mine]` is computed here."""

    def loss(self, rows: Rows, facts: Any) -> Terms:
        """The terms of the loss of the whole batch, from the results of all processes."""


class Change(Protocol):
    """A stage that trains nothing: pruning, merging. A part of TASKS may make one of these."""

    def apply(self, rows: Sequence[TrainingRow]) -> Embedder:
        """The changed embedder; the same for the same input, since a resumed run repeats it."""
