"""One step: what a batch makes the model compute, and the loss of all of it together.

A batch is cut into pieces, each a job ("encode", "log_likelihood", ...) over a few texts, whose
result is a tensor with one row a text. The loss is a function of all rows. Without a cache all
pieces are computed in one forward pass. With it (Gao et al. 2021, arXiv:2101.06983) they are
computed once without gradient, the loss gives the gradient of each row, and each piece is computed
again to pass its rows' gradient on: the memory of one piece instead of the batch, for any loss.
"""

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Rows of each job's results by the job's name, over the whole batch in order.
Rows = Mapping[str, Tensor]
# The terms of a loss by name, weighted; their sum is minimised.
Terms = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Piece:
    """A job and what it works on; its result has `num_rows` rows."""

    job: str
    payload: Any
    num_rows: int


class Worker(Protocol):
    """A module whose forward computes pieces: a tensor of rows for each."""

    def __call__(self, pieces: Sequence[Piece]) -> list[Tensor]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


def step(
    worker: Worker,
    pieces: Sequence[Piece],
    loss: Callable[[Rows], Terms],
    *,
    cached: bool,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    collect: Callable[[Rows], Rows] = lambda rows: rows,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    unsynchronised: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Terms:
    """Add the gradient of a batch to the parameters; returns the detached terms of its loss.

    `collect` puts rows in the order of the batch and joins those of all processes, with gradient;
    `unsynchronised` is a context in which processes do not exchange gradients (DDP's no_sync).
    """
    if not cached:
        with autocast():
            rows = joined(pieces, worker(pieces))
        terms = loss(collect(rows))
        backward(total(terms))
        return {name: term.detach() for name, term in terms.items()}
    states = []
    results = []
    with torch.no_grad():
        for piece in pieces:
            states.append(RandomState.now())
            with autocast():
                results.extend(worker([piece]))
    leaves = [result.detach().requires_grad_() for result in results]
    terms = loss(collect(joined(pieces, leaves)))
    backward(total(terms))
    for place, (piece, state, leaf) in enumerate(zip(pieces, states, leaves, strict=True)):
        last = place == len(pieces) - 1
        if leaf.device.type == "cpu":
            return_freed_memory()
        with state.restored(), contextlib.nullcontext() if last else unsynchronised():
            with autocast():
                (again,) = worker([piece])
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            # The gradient already has the scale of `backward`, so this goes past it.
            torch.autograd.backward(again, grad.to(again.dtype))
            del again  # its graph, before the next piece is computed
    return {name: term.detach() for name, term in terms.items()}


def return_freed_memory() -> None:
    """Give memory that tensors on the CPU have left to the system, where malloc is glibc's.

    Pieces differ in size, and gradients stay between them, so malloc finds the holes of one piece
    too small for the next: without this, the peak grew with the number of pieces.
    """
    if sys.platform == "linux" and (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def joined(pieces: Sequence[Piece], results: Sequence[Tensor]) -> Rows:
    """The rows of each job, in the order of the pieces."""
    found: dict[str, list[Tensor]] = {}
    for piece, result in zip(pieces, results, strict=True):
        assert len(result) == piece.num_rows, (piece.job, len(result), piece.num_rows)
        found.setdefault(piece.job, []).append(result)
    return {job: torch.cat(each) for job, each in found.items()}


def total(terms: Terms) -> Tensor:
    return torch.stack([term.float() for term in terms.values()]).sum()


@dataclass(frozen=True, slots=True)
class RandomState:
    """The random generators of the CPU and of all GPUs, so that dropout can be drawn again."""

    cpu: Tensor
    gpus: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> "RandomState":
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ()
        return cls(torch.get_rng_state(), tuple(gpus))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """The generators as they were, and afterwards as they are now."""
        with torch.random.fork_rng():
            torch.set_rng_state(self.cpu)
            if self.gpus:
                torch.cuda.set_rng_state_all(list(self.gpus))
            yield
