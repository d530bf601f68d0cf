"""Keys and values of the rows that are being continued, in buffers that are written in place.

B rows, T places, H heads, D size of a head.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from polyvec.embed.backbone.causal import kept_pairs

ROOM = 64  # places that are allocated ahead


class KeptStates:
    """Rows aligned at their last token, so that all write their next one at the same place.

    Rows come and go: the last takes the place of one that leaves. There is always a place before
    the longest row that nobody sees: attention without any padding takes another kernel, which is
    slower in bfloat16 and rounds differently.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.end = 0
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._mask_BT = torch.zeros(0, 0, dtype=torch.long)

    @property
    def start(self) -> int:
        return self.end - max(self.lengths, default=0) - 1

    @property
    def mask(self) -> Tensor:
        """Which places each row sees, the next token's included: [B, T]."""
        return self._mask_BT[: len(self.lengths), self.start : self.end + 1]

    @torch.inference_mode()
    def add(self, cache: DynamicCache, row: int, length: int, *, rows: int) -> None:
        """Take over the first `length` places of a row of `cache`; `rows`: most that will be kept.

        No longer than the longest row that is here, if there is one.
        """
        if not self.lengths:
            self.end = length + 1
        self._reserve(cache, max(rows, len(self.lengths) + 1))
        place, self.lengths = len(self.lengths), [*self.lengths, length]
        begin = self.end - length
        for kept, buffers in zip(kept_pairs(cache), self._buffers, strict=True):
            for old, new in zip(kept, buffers, strict=True):
                new[place, :, begin : self.end] = old[row, :, :length]
        self._mask_BT[place] = 0
        self._mask_BT[place, begin : self.end] = 1

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        last, begin = len(self.lengths) - 1, self.end - self.lengths[-1]
        if row != last:
            for keys, values in self._buffers:
                keys[row, :, begin : self.end] = keys[last, :, begin : self.end]
                values[row, :, begin : self.end] = values[last, :, begin : self.end]
            self._mask_BT[row] = self._mask_BT[last]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    @torch.inference_mode()
    def open_step(self) -> Cache:
        """The cache for one more token of each row; call `close_step` after the model has run."""
        if self.end >= self._mask_BT.shape[1]:
            self._move(self._mask_BT.shape[0])
        self._mask_BT[: len(self.lengths), self.end] = 1
        return Cache(layers=[_Layer(self, *pair) for pair in self._buffers])

    def close_step(self) -> None:
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def _reserve(self, cache: DynamicCache, rows: int) -> None:
        """Buffers of at least so many rows, with a place for the next token."""
        if not self._buffers:
            self._buffers = [(_wide(k, 0, 0), _wide(v, 0, 0)) for k, v in kept_pairs(cache)]
        if rows > self._mask_BT.shape[0] or self.end >= self._mask_BT.shape[1]:
            self._move(max(rows, self._mask_BT.shape[0]))

    def _move(self, rows: int) -> None:
        """The visible places to the front of new buffers, with room for a quarter more."""
        count, start = len(self.lengths), self.start if self.lengths else 0
        width = self.end - start
        size = width + max(ROOM, width // 4)
        mask_BT = torch.zeros(rows, size, dtype=torch.long)
        if count:
            mask_BT[:count, :width] = self._mask_BT[:count, start : self.end]
        for number, (keys, values) in enumerate(self._buffers):
            moved = _wide(keys, rows, size), _wide(values, rows, size)
            for new, old in zip(moved, (keys, values), strict=True):
                if count:
                    new[:count, :, :width] = old[:count, :, start : self.end]
            self._buffers[number] = moved
        self._mask_BT, self.end = mask_BT, width


def _wide(states: Tensor, rows: int, places: int) -> Tensor:
    """Zeros of the same heads; what nobody sees must be finite, too."""
    return states.new_zeros(rows, states.shape[1], places, states.shape[3])


class _Layer(DynamicLayer):
    """One layer's buffers as transformers' cache of a layer, for one step."""

    def __init__(self, kept: KeptStates, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.kept, self.buffers = kept, (keys, values)
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        rows, start, end = len(self.kept.lengths), self.kept.start, self.kept.end
        found = []
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, end : end + 1] = new
            found.append(buffer[:rows, :, start : end + 1])
        return found[0], found[1]

    def get_seq_length(self) -> int:
        return self.kept.end - self.kept.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0
