"""Beacons between the tokens of the context. B contexts, T tokens."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from polyvec.compress.soft.encoding import Context, Encoder, Table, with_lengths
from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.prefix import like_tokens
from polyvec.compress.soft.reading import Rows
from polyvec.errors import SettingsError


class Beacons(nn.Module):
    """A trained token behind every `ratio` tokens; what is far sees the beacons alone.

    The context is read in windows: a token sees its own window and the beacons of those before.
    The memory is the beacons' keys and values (Activation Beacon, arXiv:2401.03462), or states.
    ratios: drawn from in training, one for each batch. The paper gives beacons attention weights
    of their own; here they share the model's.
    """

    takes_rate = True

    def __init__(
        self, table: Table, ratio: int = 8, window: int = 64, ratios: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if ratio < 1 or window < ratio:
            raise SettingsError(f"memory 'beacons': window {window} is below ratio {ratio}")
        self.ratio, self.window, self.ratios = ratio, window, tuple(ratios)
        self.vector_1D = nn.Parameter(like_tokens(1, table))

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        ratio = encoder.rate or self.ratio
        if self.training and self.ratios and encoder.rate is None:
            ratio = self.ratios[int(torch.randint(len(self.ratios), ()))]
        rows = Rows(encoder.table)
        (beacon,) = rows.vectors(self.vector_1D)
        numbers, places, segments = [], [], []
        for context in contexts:
            text = rows.tokens(np.concatenate([encoder.prefix, context.query, context.ids]))
            row, kinds = interleaved(text, int(beacon), ratio, self.window)
            numbers.append(row)
            segments.append(kinds)
            places.append(np.flatnonzero(kinds % 2))
        longest = max(map(len, numbers))
        segment_BT = np.zeros((len(numbers), longest), np.int64)
        for place, kinds in enumerate(segments):
            segment_BT[place, : len(kinds)] = kinds
        found = encoder.read(
            rows,
            numbers,
            segments_BT=torch.from_numpy(segment_BT).to(encoder.device),
            blocked=beacon_blocks(int(segment_BT.max()) // 2 + 1),
        )
        return with_lengths(encoder.keep(found, places, [0] * len(contexts)), contexts)


def interleaved(
    text: np.ndarray, beacon: int, ratio: int, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """The text with a beacon behind every `ratio` tokens, and each place's segment.

    Segment 2w are tokens of window w, 2w + 1 its beacons. The last beacon may stand for fewer.
    """
    row: list[int] = []
    kinds: list[int] = []
    for number, start in enumerate(range(0, len(text), window)):
        chunk = text[start : start + window]
        for place in range(0, len(chunk), ratio):
            part = chunk[place : place + ratio].tolist()
            row += [*part, beacon]
            kinds += [2 * number] * len(part) + [2 * number + 1]
    return np.array(row, np.int64), np.array(kinds, np.int64)


def beacon_blocks(num_windows: int) -> tuple[tuple[int, int], ...]:
    """Which segment does not see which: nothing sees the tokens of an earlier window."""
    return tuple(
        (2 * later + kind, 2 * earlier)
        for earlier, later in itertools.combinations(range(num_windows), 2)
        for kind in (0, 1)
    )
