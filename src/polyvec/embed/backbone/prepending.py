"""Token prepending (Fu et al. 2024, arXiv:2412.11556): early tokens see late states.

B texts, T tokens of the longest or, packed, of all, D state size.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed.backbone.hooks import Arguments
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import ModelError
from polyvec.registry import Fact


@dataclass(frozen=True, slots=True)
class TokenPrepending:
    """Before layers `start` to `stop` - 1 the placeholder's state becomes the last token's.

    A causal model's first tokens see no later ones. Through the placeholder in front of the
    sentence they see what the last token was one layer before. `start` = `stop` changes nothing.
    """

    token_id: Annotated[int, Fact("placeholder_id")]
    start: int = 1
    stop: int = 2

    def check(self, num_layers: int) -> None:
        """Raises ModelError if a model of so many layers does not have these."""
        if not 0 <= self.start <= self.stop <= num_layers:
            raise ModelError(
                f"token prepending: start {self.start} and stop {self.stop} must satisfy "
                f"0 <= start <= stop <= {num_layers}, the number of layers"
            )

    def change(self, batch: TokenBatch) -> "Prepended":
        """What the layers of a batch read instead; ModelError for a text without placeholder."""
        lengths = np.array(batch.lengths)
        starts = np.cumsum(lengths) - lengths
        found = np.flatnonzero(batch.ids_T == self.token_id)
        rows = np.searchsorted(starts, found, side="right") - 1
        if len(set(rows.tolist())) != len(lengths):
            raise ModelError(f"token prepending: a text has no placeholder (id {self.token_id})")
        places, last = found - starts[rows], lengths[rows] - 1
        arrays = starts[rows], rows, places, last
        return Prepended(self.start, self.stop, len(batch.ids_T), *map(torch.from_numpy, arrays))


@dataclass(frozen=True, slots=True)
class Prepended:
    """One batch: for each placeholder its text's start and row, its place and the last token's."""

    start: int
    stop: int
    num_tokens: int
    starts: Tensor
    rows: Tensor
    places: Tensor
    last: Tensor

    def __call__(self, number: int, layer: nn.Module, arguments: Arguments) -> Arguments:
        if not self.start <= number < self.stop:
            return arguments
        args, kwargs = arguments
        # A copy: the states before the layer are an output of the layer below.
        states: Tensor = (args[0] if args else kwargs["hidden_states"]).clone()
        if states.shape[0] == 1 and states.shape[1] == self.num_tokens:  # packed
            states[0, self.starts + self.places] = states[0, self.starts + self.last]
        else:
            states[self.rows, self.places] = states[self.rows, self.last]
        if args:
            return (states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": states}
