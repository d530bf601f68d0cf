"""Base class of poolings with settings or weights: checks, precision, states by mask.

B texts, T tokens of the longest, D state size, E vector size.
"""

import torch
from torch import Tensor

from polyvec.embed.backbone.states import States
from polyvec.embed.part import Part, wide
from polyvec.errors import ModelError, SettingsError, ShapeError


class PoolingModule(Part):
    """States of a batch to one vector a text, [B, E], in the states' dtype.

    A subclass writes `vectors`, which may compute in float32; `needs` names the side outputs
    (states.SIDE_OUTPUTS) that it reads. Its result must not depend on the states of padding,
    which may be NaN, or on other texts of the batch.
    """

    needs: frozenset[str] = frozenset()
    hidden_size: int | None = None
    out_features: int
    # Whether a text without a pooled token has zeros; else it is an error.
    zero_if_empty: bool = False

    def forward(self, states: States) -> Tensor:
        """The vectors, [B, E].

        Raises ModelError if a side output is missing, and ShapeError if states are of another
        size, masks of another batch, or a text has no pooled token.
        """
        self._check(states)
        return self.vectors(states).to(states.last_BTD.dtype)

    def vectors(self, states: States) -> Tensor:
        raise NotImplementedError

    def check_layers(self, num_states: int) -> None:
        """Raises SettingsError for a layer that a model of so many states does not have.

        The word embeddings are the first of them.
        """
        for layer in self.chosen_layers:
            check_layer(layer, num_states, type(self).__name__)

    @property
    def chosen_layers(self) -> tuple[int, ...]:
        """The layers that the settings name: 0 is the word embeddings, -1 the last layer."""
        return ()

    def _check(self, states: States) -> None:
        # Broadcasting would turn a mask of another batch into wrong vectors without an error.
        name, size = type(self).__name__, states.last_BTD.shape
        for output in sorted(self.needs):
            value = getattr(states, output)
            if value is None or (isinstance(value, tuple) and not value):
                raise ModelError(f"{name} needs {output}, which the backbone did not return")
        if self.hidden_size not in (None, size[-1]):
            raise ShapeError(f"{name} expects states of size {self.hidden_size}, got {size[-1]}")
        masks = (
            states.attention_mask_BT,
            states.pooling_mask_BT,
            states.text_mask_BT,
            states.ids_BT,
        )
        if any(mask.shape != size[:2] for mask in masks):
            shapes = [tuple(mask.shape) for mask in masks]
            raise ShapeError(f"{name}: states {tuple(size)} with masks and ids {shapes}")
        if not self.zero_if_empty and not bool(states.pooling_mask_BT.any(dim=1).all()):
            raise ShapeError(f"{name}: a text has no token to pool")


def real(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The states in float32 where the mask is set, zero elsewhere: 0 * NaN would be NaN."""
    return wide(torch.where(mask_BT.bool()[..., None], states_BTD, 0))


def layer_states(states: States, layer: int, where: str) -> Tensor:
    """States of one layer, [B, T, D]: 0 is the word embeddings, -1 the last layer.

    Raises SettingsError if the model has no such layer.
    """
    layers = states.all_layers or ()
    check_layer(layer, len(layers), where)
    return layers[layer]


def check_layer(layer: int, num_states: int, where: str) -> None:
    """Raises SettingsError for a layer that is not among so many states."""
    if not -num_states <= layer < num_states:
        raise SettingsError(
            f"{where}: layer {layer} does not exist; the model has layers 0 (word embeddings) to "
            f"{num_states - 1}"
        )
