"""What processes exchange: results with their gradient, and gradients of weights.

Every process knows all rows of a batch, computes the results of its share, and the loss of the
whole batch from the results of all. The gradient of a gathered result is the sum over processes,
and gradients of weights are averaged: together the gradient that one process with the whole batch
would have, for any loss, without a factor in the loss (SILENT row 20).
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polyvec.errors import DataError
from polyvec.train.engine import Rows
from polyvec.train.task import Share, Work


@dataclass(frozen=True, slots=True)
class Exchange:
    """This process and the number of all of them."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "Exchange":
        """As torchrun started this process; alone without it."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @classmethod
    def connected(cls, device: str) -> "Exchange":
        """As `here`, after the processes of torchrun have found each other."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            from accelerate import PartialState

            PartialState(cpu=device == "cpu")
        return cls.here()

    def shares(self, num_rows: int) -> list[Share]:
        """The rows of each process: as many, or one more for the first ones."""
        if num_rows < self.size:
            raise DataError(
                f"a batch of {num_rows} rows cannot be shared by {self.size} processes; "
                "make batches larger, or start fewer processes"
            )
        each, more = divmod(num_rows, self.size)
        starts = [rank * each + min(rank, more) for rank in range(self.size + 1)]
        return [Share(start, stop) for start, stop in itertools.pairwise(starts)]

    def collect(self, work: Work, rows: Rows) -> Rows:
        """The results of all processes, one after another, each in the order of the work."""
        if self.size == 1:
            return work.ordered(rows)
        local = all(len(work.order[job]) == len(each) for job, each in rows.items())
        rows = work.ordered(rows) if local else rows
        # In the same order everywhere: each gather waits for all processes.
        found = {job: self._gather(job, work, rows) for job in sorted(work.sizes)}
        return found if local else work.ordered(found)

    def _gather(self, job: str, work: Work, rows: Rows) -> Tensor:
        sizes = work.sizes[job]
        if min(sizes) > 0:
            return gather(rows[job], sizes, self.rank)
        # A process without results of this job does not know what they look like.
        shapes: list[Any] = [None] * self.size
        own = rows.get(job)
        dist.all_gather_object(shapes, None if own is None else (own.shape[1:], own.dtype))
        if own is None:
            shape, dtype = next(each for each in shapes if each is not None)
            own = torch.zeros(0, *shape, dtype=dtype, device=_device(), requires_grad=True)
        return gather(own, sizes, self.rank)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradient of each weight by its mean over processes.

        A weight without a gradient here counts as zeros, since another process may have used it.
        Weights that a wrapper shards (FSDP) are left to it.
        """
        if self.size == 1:
            return
        mine = [each for each in parameters if each.requires_grad and not _sharded(each)]
        for same in _by_kind(mine):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in same]
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            dist.all_reduce(flat)
            flat /= self.size
            ends = flat.split([grad.numel() for grad in grads])
            for parameter, mean in zip(same, ends, strict=True):
                parameter.grad = mean.view_as(parameter).clone()

    def most(self, number: int) -> int:
        """The largest of a number over processes."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        found = found.to(_device())
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over processes."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(found)
        return [float(each) for each in found.tolist()]

    def broadcast(self, found: Any) -> Any:
        """What the first process has found, in every process."""
        if self.size == 1:
            return found
        box = [found]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


class _Gather(torch.autograd.Function):
    """Rows of all processes; their gradient is the sum over the processes' losses."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        return torch.cat([each[:size] for each, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        start = sum(ctx.sizes[: ctx.rank])
        return grad[start : start + ctx.sizes[ctx.rank]], None, None


def gather(rows: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
    """Rows of all processes, which may have different numbers of them, with gradient."""
    assert len(rows) == sizes[rank], (len(rows), sizes, rank)
    found: Tensor = _Gather.apply(rows, tuple(sizes), rank)
    return found


def _sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "full_tensor")  # a DTensor


def _by_kind(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    kinds: dict[Any, list[nn.Parameter]] = {}
    for each in parameters:
        kinds.setdefault((each.dtype, each.device), []).append(each)
    return list(kinds.values())


def _device() -> torch.device:
    cuda = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
