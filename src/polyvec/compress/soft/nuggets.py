"""Tokens of the context that a trained scorer chooses. B contexts, T tokens, M of them chosen."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from polyvec.compress.soft.encoding import Context, Encoder, Size
from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.reading import Rows
from polyvec.errors import SettingsError


class Nuggets(nn.Module):
    """The ⌈n / ratio⌉ tokens of n whose states a scorer rates highest.

    Their states are Nugget's (Qin and Van Durme 2023, arXiv:2310.01732), their keys and values of
    all layers Nugget2D's (arXiv:2310.02409). A choice has no gradient, so what is kept is
    multiplied by 1 + score - score, of which the last is a constant: the scorer learns what the
    decoder would want more of. The papers add the scores to the logits of the decoder's attention.
    """

    takes_rate = True

    def __init__(self, hidden_size: Size, ratio: int = 8) -> None:
        super().__init__()
        if ratio < 1:
            raise SettingsError("memory 'nuggets': ratio is at least 1")
        self.ratio = ratio
        self.scorer = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, 1)
        )

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        ratio = encoder.rate or self.ratio
        rows = Rows(encoder.table)
        starts = [len(encoder.prefix) + len(each.query) for each in contexts]
        numbers = [
            rows.tokens(np.concatenate([encoder.prefix, each.query, each.ids])) for each in contexts
        ]
        found = encoder.read(rows, numbers)
        scores_BT = self.scorer(found.states_BTD)[..., 0]
        places, gains = [], []
        for row, (start, context) in enumerate(zip(starts, contexts, strict=True)):
            own_T = scores_BT[row, start : start + len(context.ids)]
            chosen_M = own_T.topk(-(-len(context.ids) // ratio)).indices.sort().values
            places.append(start + chosen_M.cpu().numpy())
            gains.append(1 + own_T[chosen_M] - own_T[chosen_M].detach())
        memory = encoder.keep(found, places, [len(each.ids) for each in contexts], raw=True)
        gain_BM = nn.utils.rnn.pad_sequence(gains, batch_first=True)
        return encoder.connected(scaled(memory, gain_BM))


def scaled(memory: MemoryBatch, gain_BM: Tensor) -> MemoryBatch:
    """The states, or the values, times a number for each vector."""
    if memory.states_BMD is not None:
        return replace(memory, states_BMD=memory.states_BMD * gain_BM[:, :, None])
    gain_BHMK = gain_BM[:, None, :, None]
    return replace(memory, pairs=tuple((k, v * gain_BHMK) for k, v in memory.pairs))
