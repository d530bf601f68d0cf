"""Trained vectors behind the context, of which the encoder makes its memory.

B contexts, M vectors, T tokens, D state size of the encoder, C input size of the decoder.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.compress.soft.encoding import NOTHING, Context, Encoder, Table, segments
from polyvec.compress.soft.memory import MemoryBatch, appended
from polyvec.compress.soft.prefix import like_tokens
from polyvec.compress.soft.reading import Rows
from polyvec.errors import SettingsError


class Slots(nn.Module):
    """Trained vectors behind the context, whose states (or keys and values) are the memory.

    ICAE's memory slots, Gist's tokens, AutoCompressor's summary tokens, <MEM> of COCOM and PISCO.

    num: of them; or one for each `ratio` tokens of the context. shared: all are the same vector.
    segment: tokens that are read at a time; None: the whole context. combine: what happens to the
    memories of segments: "accumulate": each segment reads those before it, and all are kept
    (AutoCompressor); "replace": each reads the last one, which it replaces (RMT); "independent":
    each is read alone and all are kept (ICAE's spans, COCOM's documents). bptt: segments through
    which gradients flow back, 0: all.
    """

    def __init__(
        self,
        table: Table,
        num: int = 16,
        ratio: int | None = None,
        shared: bool = False,
        segment: int | None = None,
        combine: Literal["accumulate", "replace", "independent"] = "accumulate",
        bptt: int = 2,
    ) -> None:
        super().__init__()
        if num < 1 or (ratio is not None and ratio < 1) or (segment is not None and segment < 1):
            raise SettingsError("memory 'slots': num, ratio and segment are at least 1")
        self.num, self.ratio, self.segment = num, ratio, segment
        self.combine, self.bptt, self.shared = combine, bptt, shared
        rows = 1 if shared else num
        if ratio is not None and not shared:
            raise SettingsError(
                "memory 'slots': a ratio gives no fixed number of slots; set shared = true"
            )
        self.vectors_MD = nn.Parameter(like_tokens(rows, table))

    @property
    def takes_rate(self) -> bool:
        """Whether a call may give another ratio."""
        return self.ratio is not None

    def slots_of(self, length: int, rate: int | None = None) -> int:
        """How many a segment of so many tokens has."""
        ratio = rate or self.ratio
        if ratio is None:
            return self.num
        return max(1, -(-length // ratio))

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        parts = [segments(each.ids, self.segment) for each in contexts]
        memory: MemoryBatch | None = None
        for number in range(max(map(len, parts))):
            chunks = [each[number] if number < len(each) else None for each in parts]
            if memory is not None and self.bptt and number % self.bptt == 0:
                memory = memory.detached()
            before = None if self.combine == "independent" else memory
            found = self._segment(encoder, contexts, chunks, before, offset=number)
            memory = found if memory is None else self._combined(memory, found)
        assert memory is not None
        return encoder.connected(memory)

    def _combined(self, before: MemoryBatch, found: MemoryBatch) -> MemoryBatch:
        if self.combine != "replace":
            next_B = torch.maximum(before.next_B, found.next_B)
            return replace(appended(before, found), next_B=next_B)
        # A context that has ended keeps the memory of its last segment.
        ended_B = ~found.real_BM.any(1)
        return _where(ended_B, before, found)

    def _segment(
        self,
        encoder: Encoder,
        contexts: Sequence[Context],
        chunks: Sequence[np.ndarray | None],
        before: MemoryBatch | None,
        offset: int,
    ) -> MemoryBatch:
        rows = Rows(encoder.table)
        vectors = rows.vectors(self.vectors_MD)
        carried = [NOTHING] * len(chunks)
        if before is not None and before.states_BMD is not None:
            carried = rows.memories(before)
        numbers, places = [], []
        for context, chunk, memory in zip(contexts, chunks, carried, strict=True):
            if chunk is None:
                numbers.append(NOTHING)
                places.append(NOTHING)
                continue
            count = self.slots_of(len(chunk), encoder.rate)
            slots = vectors[np.arange(count) % len(vectors)]
            start = encoder.prefix if offset == 0 else ()
            text = rows.tokens(np.concatenate([start, context.query, chunk]))
            numbers.append(np.concatenate([memory, text, slots]))
            places.append(np.arange(len(memory) + len(text), len(memory) + len(text) + count))
        past = None
        start_B = None
        if before is not None and before.pairs:
            past, start_B = (before.pairs, before.real_BM), before.next_B
        elif encoder.kv and offset:
            assert self.segment is not None
            start_B = torch.full((len(chunks),), offset * self.segment, device=encoder.device)
        found = encoder.read(rows, numbers, past=past, start_B=start_B)
        lengths = [0 if chunk is None else len(chunk) for chunk in chunks]
        return encoder.keep(found, places, lengths, raw=True)


def _where(first_B: Tensor, a: MemoryBatch, b: MemoryBatch) -> MemoryBatch:
    """Rows of `a` where `first_B`, else of `b`; memories of one width."""
    most = max(a.real_BM.shape[1], b.real_BM.shape[1])

    def wide(each: Tensor, dim: int) -> Tensor:
        short = most - each.shape[dim]
        shape = [*each.shape[:dim], short, *each.shape[dim + 1 :]]
        return torch.cat([each, each.new_zeros(shape)], dim)

    def pick(x: Tensor, y: Tensor, dim: int) -> Tensor:
        x, y = wide(x, dim), wide(y, dim)
        return torch.where(first_B.view(-1, *[1] * (x.ndim - 1)), x, y)

    lengths = tuple(x + y for x, y in zip(a.lengths, b.lengths, strict=True))
    states = None
    if a.states_BMD is not None and b.states_BMD is not None:
        states = pick(a.states_BMD, b.states_BMD, 1)
    pairs = tuple(
        (pick(x[0], y[0], 2), pick(x[1], y[1], 2)) for x, y in zip(a.pairs, b.pairs, strict=True)
    )
    real = pick(a.real_BM, b.real_BM, 1)
    return MemoryBatch(real, torch.where(first_B, a.next_B, b.next_B), lengths, states, pairs)
