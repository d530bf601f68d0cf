"""Linear layers of float32 as products with weights in a layout of their own: oneDNN's and MKL's.

T tokens of all texts, D numbers in, N numbers out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polyvec.embed.backbone.processor import is_intel

# What oneDNN computes with a product: its name there, and a variant.
ACTIVATIONS = {
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}
Activation = tuple[str, str]
ACTIVATION: Activation = ("none", "")
ROWS = 256  # MKL asks for a number; its layout is the same for any


class UnsuitedError(Exception):
    """A model has a part that the fused layers do not compute."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What a linear layer holds, read from a file without making the layer."""

    weight: Tensor
    bias: Tensor | None

    @property
    def out_features(self) -> int:
        return len(self.weight)


class Linear:
    """Linear layers of one input, side by side, as one product.

    name: of its numbers. bytes: of a weight. least_cosine: between a model's own states and those
    made with such products, if they are not equal but for rounding.
    """

    name, bytes = "float32", 4
    least_cosine: float | None = None
    hides_nan = False  # whether an input of NaN has outputs that are numbers

    def __init__(self, *layers: Any, order: Tensor | None = None) -> None:
        """`order`: the order of the outputs, if it is another than the layers'."""
        weight, self.bias = joined(layers, order)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def __call__(self, x_TD: Tensor, activation: Activation = ACTIVATION) -> Tensor:
        name, variant = activation
        args: tuple[Any, ...] = (x_TD, self.weight, self.bias, name, [], variant)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(*args)
        return out

    def with_other(
        self, operation: str, x_TD: Tensor, other_TN: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """The outputs "add" (plus) or "mul" (times) `other`, in `out` if there is one."""
        args = (x_TD, other_TN, self.weight, self.bias, operation)
        found_TN: Tensor = torch.ops.mkldnn._linear_pointwise.binary(*args)
        return found_TN if out is None else out.copy_(found_TN)


def weight_of(layer: Any) -> Tensor:
    """A linear layer's weight in float32, [N, D]; UnsuitedError for other layers."""
    # Adapters and quantised layers have types of their own.
    if type(layer) not in (nn.Linear, Weights) or layer.weight.dtype != torch.float32:
        raise UnsuitedError(type(layer).__name__)
    weight: Tensor = layer.weight.detach()
    return weight


def joined(layers: tuple[Any, ...], order: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layers side by side; UnsuitedError for other layers."""
    weight = torch.cat([weight_of(layer) for layer in layers])
    biases = [layer.bias for layer in layers]
    if any(bias is None for bias in biases) and not all(bias is None for bias in biases):
        raise UnsuitedError("some biases")
    bias = None if biases[0] is None else torch.cat([each.detach() for each in biases])
    if order is not None:
        weight, bias = weight[order], None if bias is None else bias[order]
    return weight.contiguous(), bias


class MklLinear(Linear):
    """Linear layers of one input as one product of MKL; what follows it are torch's operations.

    All that included, on Intel's processors 4 to 10 % faster than oneDNN's, on AMD's slower.
    """

    def __init__(self, *layers: Any, order: Tensor | None = None) -> None:
        weight, self.bias = joined(layers, order)
        self.weight = torch.ops.mkl._mkl_reorder_linear_weight(weight, ROWS)
        # torch asks for the weight itself, too, and reads its shape. Should another version read
        # more, states would not be numbers, and the layers refused.
        self.shape = torch.full((1, 1), torch.nan).expand(weight.shape)

    def __call__(self, x_TD: Tensor, activation: Activation = ACTIVATION) -> Tensor:
        return activated(self._product(x_TD), activation)

    def with_other(
        self, operation: str, x_TD: Tensor, other_TN: Tensor, out: Tensor | None = None
    ) -> Tensor:
        return combined(operation, self._product(x_TD), other_TN, out)

    def _product(self, x_TD: Tensor) -> Tensor:
        args = (x_TD, self.weight, self.shape, self.bias, x_TD.shape[0])
        out_TN: Tensor = torch.ops.mkl._mkl_linear(*args)
        return out_TN


def activated(x_TN: Tensor, activation: Activation) -> Tensor:
    """The numbers after an activation, in their own memory."""
    name, variant = activation
    if name == "gelu":
        out_TN: Tensor = torch.ops.aten.gelu_(x_TN, approximate=variant)
        return out_TN
    return IN_PLACE[name](x_TN)


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "swish": functools.partial(torch.nn.functional.silu, inplace=True),
}


def combined(operation: str, x_TN: Tensor, other_TN: Tensor, out: Tensor | None = None) -> Tensor:
    """The numbers "add" (plus) or "mul" (times) others, in `out`, else in their own memory."""
    combine = torch.add if operation == "add" else torch.mul
    found_TN: Tensor = combine(x_TN, other_TN, out=x_TN if out is None else out)
    return found_TN


@functools.cache
def exact_linears() -> tuple[type[Linear], ...]:
    """The kinds of products that give float32's vectors, the fastest first.

    By the processor's maker, not measured: all processes on a machine give the same vectors.
    """
    return (MklLinear, Linear) if torch.backends.mkl.is_available() and is_intel() else (Linear,)
