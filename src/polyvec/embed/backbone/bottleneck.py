"""Bottleneck adapters: a small feed-forward network after every block, beside the model's weights.

Layer norm, down to a few dimensions, ReLU, up again, added to the block's states (Bapna and Firat
2019, arXiv:1909.08478, after Houlsby et al. 2019, arXiv:1902.00751). peft has no adapter of this
kind. D state size.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyvec.embed.backbone.hooks import decoder_layers
from polyvec.errors import ModelError

NAME = "bottleneck"
FILE = "bottleneck.safetensors"


class Bottleneck(nn.Module):
    """States [..., D] with what the network adds; at first nothing."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.norm, self.down, self.up = (
            nn.LayerNorm(size),
            nn.Linear(size, inner),
            nn.Linear(inner, size),
        )
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        added: Tensor = self.up(torch.relu(self.down(self.norm(states))))
        return states + added


class AddBottleneck:
    """The hook of a block. A class of the module and not a closure, so that models pickle."""

    def __call__(self, layer: Any, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (layer.bottleneck(output[0]), *output[1:])
        return layer.bottleneck(output)


def add_bottlenecks(model: PreTrainedModel, inner: int) -> None:
    """Give every block its adapter of `inner` dimensions."""
    weight = next(model.parameters())
    size = model.config.get_text_config().hidden_size
    for layer in decoder_layers(model):
        layer.add_module(NAME, Bottleneck(size, inner).to(weight.device, model.dtype))
        # Before transformers' own hooks, which record the states of all layers.
        layer.register_forward_hook(AddBottleneck(), prepend=True)


def bottleneck_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights by their names in the model; empty without adapters."""
    return {key: each for key, each in model.state_dict().items() if f".{NAME}." in key}


def write_bottlenecks(model: nn.Module, folder: Path) -> None:
    state = {key: each.contiguous() for key, each in bottleneck_state(model).items()}
    save_file(state, folder / FILE)


def read_bottlenecks(model: PreTrainedModel, folder: Path) -> None:
    """Add the adapters that a folder holds, if it does; ModelError if they are another model's."""
    if not (folder / FILE).is_file():
        return
    try:
        state = load_file(folder / FILE)
    except SafetensorError as error:
        raise ModelError(f"{folder / FILE}: cannot be read ({error})") from None
    inner = next((len(each) for key, each in state.items() if key.endswith("down.bias")), 1)
    add_bottlenecks(model, inner)
    wanted = bottleneck_state(model)
    wrong = {key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape}
    wrong |= wanted.keys() ^ state.keys()
    if wrong:
        raise ModelError(
            f"{folder / FILE}: weight {min(wrong)} does not fit {type(model).__name__}"
        )
    model.load_state_dict(state, strict=False)
