"""Token prepending (Fu et al. 2024, arXiv:2412.11556): late states are shown to early tokens."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from polyvec.embed.backbone.hooks import decoder_layers
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import ModelError
from polyvec.registry import Fact


@dataclass(frozen=True, slots=True)
class TokenPrepending:
    """Before layers `start` to `stop` - 1 the placeholder's state becomes the last token's.

    A causal model's first tokens see no later ones; through the placeholder in front of the
    sentence they see what the last token knew one layer before. `start` = `stop` changes nothing.
    """

    token_id: Annotated[int, Fact("placeholder_id")]
    start: int = 1
    stop: int = 2

    @contextlib.contextmanager
    def into(self, model: PreTrainedModel, batch: TokenBatch) -> Iterator[None]:
        """While inside, the layers' inputs are changed so."""
        layers = decoder_layers(model)
        if not 0 <= self.start <= self.stop <= len(layers):
            raise ModelError(
                f"token prepending from layer {self.start} to {self.stop} makes no sense "
                f"in a model of {len(layers)} layers"
            )
        places = self._places(batch)
        change = lambda layer, args, kwargs: _put(args, kwargs, batch, *places)  # noqa: E731
        hooks = [
            layer.register_forward_pre_hook(change, with_kwargs=True)
            for layer in layers[self.start : self.stop]
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _places(self, batch: TokenBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each placeholder: its text, its place in it, and the last token's place."""
        lengths = np.array(batch.lengths)
        starts = np.cumsum(lengths) - lengths
        found = np.flatnonzero(batch.ids_T == self.token_id)
        text = np.searchsorted(starts, found, side="right") - 1
        if len(set(text.tolist())) != len(lengths):
            raise ModelError(f"token prepending: a text has no placeholder (id {self.token_id})")
        return text, found - starts[text], lengths[text] - 1


def _put(args: tuple, kwargs: dict, batch: TokenBatch, text, place, last):
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    states = states.clone()
    if states.shape[0] == 1 and states.shape[1] == len(batch.ids_T):  # packed
        lengths = np.array(batch.lengths)
        start = torch.from_numpy((np.cumsum(lengths) - lengths)[text])
        to, source = start + torch.from_numpy(place), start + torch.from_numpy(last)
        states[0, to] = states[0, source]
    else:
        rows = torch.from_numpy(text)
        states[rows, torch.from_numpy(place)] = states[rows, torch.from_numpy(last)]
    return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})
