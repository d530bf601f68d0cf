"""What kinds of memory share: the context as they get it, and the encoder that reads it.

B contexts, M vectors, T tokens, D state size of the encoder, C input size of the decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.reading import Read, Rows, read
from polyvec.embed.backbone.backbone import Backbone
from polyvec.registry import Fact

NOTHING = np.zeros(0, np.int64)
Table = Annotated[Tensor, Fact("table")]  # of the encoder's token embeddings
ConnectorFact = Annotated[nn.Module, Fact("connector")]
Size = Annotated[int, Fact("hidden_size")]
Decoded = Annotated[Tensor, Fact("decoder_table")]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """A text to compress: the encoder's tokens of it and of the question (none: not read).

    vectors_IE: off-the-shelf embeddings of it, for the kind "vector".
    pieces: of the kind "blocks": runs of tokens and whether they stay as they are.
    num_cut: tokens of the text that are not read.
    """

    ids: np.ndarray
    query: np.ndarray = field(default_factory=lambda: NOTHING)
    vectors_IE: Tensor | None = None
    pieces: tuple[tuple[np.ndarray, bool], ...] = ()
    num_cut: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """What kinds read with: the backbone, its table of token embeddings, and the connector.

    kv: whether keys and values are kept. prefix: tokens at the start of each text (BOS).
    rate: replaces a kind's own stride or ratio for this call.
    """

    backbone: Backbone
    table: nn.Module
    connector: nn.Module
    kv: bool = False
    prefix: tuple[int, ...] = ()
    rate: int | None = None

    @property
    def device(self) -> torch.device:
        return next(self.table.parameters()).device

    def read(self, rows: Rows, numbers: Sequence[np.ndarray], **options: Any) -> Read:
        inputs_BTD, real_BT = rows.padded(numbers)
        return read(self.backbone, inputs_BTD, real_BT, keep=self.kv, **options)

    def keep(
        self,
        found: Read,
        places: Sequence[np.ndarray],
        lengths: Sequence[int],
        *,
        raw: bool = False,
    ) -> MemoryBatch:
        """The states, or keys and values, at these places of each row."""
        counts = np.array([len(each) for each in places])
        most = max(1, int(counts.max()))
        place_BM = np.zeros((len(places), most), np.int64)
        for row, each in enumerate(places):
            place_BM[row, : len(each)] = each
        index_BM = torch.from_numpy(place_BM).to(self.device)
        real_BM = torch.from_numpy(np.arange(most)[None] < counts[:, None]).to(self.device)
        if self.kv:
            return MemoryBatch(real_BM, found.next_B, tuple(lengths), pairs=found.pairs(index_BM))
        states = found.states_BTD.gather(
            1, index_BM[:, :, None].expand(-1, -1, found.states_BTD.shape[-1])
        )
        return self.of_states(states, real_BM, lengths, raw=raw)

    def of_states(
        self, states_BMD: Tensor, real_BM: Tensor, lengths: Sequence[int], *, raw: bool = False
    ) -> MemoryBatch:
        """A memory of states, through the connector unless `raw`."""
        states_BMC = states_BMD if raw else self.connector(states_BMD)
        return MemoryBatch(real_BM, real_BM.sum(1), tuple(lengths), states_BMC)

    def connected(self, memory: MemoryBatch) -> MemoryBatch:
        if memory.states_BMD is None:
            return memory
        return self.of_states(memory.states_BMD, memory.real_BM, memory.lengths)


def with_lengths(memory: MemoryBatch, contexts: Sequence[Context]) -> MemoryBatch:
    return replace(memory, lengths=tuple(len(each.ids) for each in contexts))


def segments(ids: np.ndarray, size: int | None) -> list[np.ndarray]:
    """The context in segments of `size` tokens; an empty one is one empty segment."""
    if size is None or len(ids) <= size:
        return [ids]
    return [ids[start : start + size] for start in range(0, len(ids), size)]
