"""Every few states of the context as its memory. B contexts, M vectors, C input size."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from polyvec.compress.soft.encoding import Context, Encoder, segments, with_lengths
from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.reading import Rows
from polyvec.errors import SettingsError


class Strided(nn.Module):
    """Every `stride`-th state of the context, and the last one: ⌈n/stride⌉ of n tokens.

    Extensible Tokenization (arXiv:2401.07793), and RCC (arXiv:2406.06110) with `segment`: segments
    are read one by one, each alone. A call may have another stride; strides: drawn from in
    training, one for each batch.
    """

    takes_rate = True

    def __init__(
        self, stride: int = 8, segment: int | None = None, strides: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if stride < 1 or any(each < 1 for each in strides):
            raise SettingsError("memory 'strided': a stride is at least 1")
        self.stride, self.segment, self.strides = stride, segment, tuple(strides)

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        stride = encoder.rate or self.stride
        if self.training and self.strides and encoder.rate is None:
            stride = self.strides[int(torch.randint(len(self.strides), ()))]
        rows = Rows(encoder.table)
        split = [segments(each.ids, self.segment) for each in contexts]
        numbers, places, owners = [], [], []
        for row, (context, parts) in enumerate(zip(contexts, split, strict=True)):
            for part in parts:
                start = np.concatenate([encoder.prefix, context.query]).astype(np.int64)
                numbers.append(rows.tokens(np.concatenate([start, part])))
                places.append(len(start) + strided_places(len(part), stride))
                owners.append(row)
        found = encoder.read(rows, numbers)
        lengths = [len(each) for each in places]
        memory = encoder.keep(found, places, lengths)
        if len(owners) == len(contexts):
            return with_lengths(memory, contexts)
        if encoder.kv:
            raise SettingsError("memory 'strided': segments need carrier 'hidden'")
        return with_lengths(regrouped(memory, owners, len(contexts)), contexts)


def strided_places(length: int, stride: int) -> np.ndarray:
    """The last token of every `stride`, and the last of all."""
    found = np.arange(stride - 1, length, stride)
    return found if length % stride == 0 else np.append(found, length - 1)


def regrouped(memory: MemoryBatch, owners: Sequence[int], count: int) -> MemoryBatch:
    """Memories of parts as those of their contexts, one behind another, [count, M, C]."""
    assert memory.states_BMD is not None
    size, real = memory.states_BMD.shape[1], memory.real_BM.cpu().numpy()
    mine: list[list[int]] = [[] for _ in range(count)]
    for part, (owner, there) in enumerate(zip(owners, real, strict=True)):
        mine[owner] += (part * size + np.flatnonzero(there)).tolist()
    most = max(1, *map(len, mine))
    index = torch.zeros(count, most, dtype=torch.long)
    for row, each in enumerate(mine):
        index[row, : len(each)] = torch.tensor(each)
    counts = torch.tensor([len(each) for each in mine])
    real_BM = (torch.arange(most)[None] < counts[:, None]).to(memory.real_BM.device)
    states = memory.states_BMD.flatten(0, 1)[index.to(memory.real_BM.device)]
    return MemoryBatch(real_BM, real_BM.sum(1), (0,) * count, states)
