"""8-bit products whose inputs have fixed levels, found once on sample texts: BERT's family.

fast.Int8Linear finds the levels of each token when it meets it: three passes over the states
before a product, and another one behind it. With fixed levels the first product of the
feed-forward layer gives activations as levels, which the second one reads as they are.

What fixed levels would lose is mostly lost to a few large numbers. Inputs that norms and attention
give are divided by the size of each channel, which the weights take over (SmoothQuant,
arXiv:2211.10438). Activations cannot be: those of the few channels with the largest numbers have
levels, and products, of their own (LLM.int8, arXiv:2208.07339, keeps such channels in 16 bits).

T tokens of all texts, D numbers in, N numbers out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.embed.backbone.fast import AS_FLOATS, TINY, Int8Linear, as_integers
from polyvec.embed.backbone.fused import FAMILIES, Bert, BertLayer
from polyvec.embed.backbone.linears import (
    ACTIVATION,
    ACTIVATIONS,
    Activation,
    Linear,
    UnsuitedError,
    activated,
    combined,
    joined,
    weight_of,
)
from polyvec.embed.inputs.tokens import TokenBatch

FORMAT = 1  # of how levels are found, in fingerprints; another number for other vectors
LARGEST = 255  # of the levels, which count from zero
ROUNDING = 2.0**23  # added to a float it leaves a whole number in its last bits
# Ranges are rounded up to so many steps an octave: a sum in another order, as another number of
# threads or another processor has it, gives the same levels.
STEPS = 16
SMALLEST = 1e-3  # size of a channel, of the largest one's
SHARE, MULTIPLE = 32, 16  # of how many channels one has levels of its own; kernels like multiples
KNOWN = tuple(ACTIVATIONS[name] for name in ("gelu", "gelu_new", "relu"))
BLOCK = 1 << 20  # tokens: all at once, as a call of the product takes as long as some 20 of them
DRAWN = 1  # the seed of texts of random ids
DRAWN_LENGTHS = (32,) * 16


class Watched:
    """Linear layers of float32, as they are, that note the range of each number of their input.

    tokens: rows of the input that are tokens; others behind them are not looked at.
    """

    def __init__(self, *layers: Any, order: Tensor | None = None) -> None:
        if order is not None:
            raise UnsuitedError("outputs in another order")
        self.weights = [weight_of(layer) for layer in layers]
        self.layers, self.tokens = layers, 0
        self.least_D = self.most_D = torch.zeros(self.weights[0].shape[1])

    def __call__(self, x_RD: Tensor, activation: Activation = ACTIVATION) -> Tensor:
        return activated(self._product(x_RD), activation)

    def with_other(
        self, operation: str, x_RD: Tensor, other_RN: Tensor, out: Tensor | None = None
    ) -> Tensor:
        return combined(operation, self._product(x_RD), other_RN, out)

    def _product(self, x_RD: Tensor) -> Tensor:
        x_TD = x_RD[: self.tokens]
        self.least_D = torch.minimum(self.least_D, x_TD.amin(dim=0))
        self.most_D = torch.maximum(self.most_D, x_TD.amax(dim=0))
        pairs = zip(self.weights, self.layers, strict=True)
        return torch.cat([F.linear(x_RD, weight, layer.bias) for weight, layer in pairs], dim=1)

    def divisor(self) -> Tensor:
        """The square root of each channel's size, [D]: half of it goes to the weights."""
        sizes_D = torch.maximum(-self.least_D, self.most_D)
        return rounded_up(sizes_D.clamp(min=SMALLEST * float(sizes_D.max()) + TINY).sqrt())


def rounded_up(x: Tensor) -> Tensor:
    """Positive numbers, each rounded up to the next of STEPS powers in an octave."""
    return torch.exp2((x.log2() * STEPS).ceil() / STEPS)


@dataclass(frozen=True)
class Levels:
    """The 256 levels of numbers: level l stands for (l - zero) * step."""

    step: float
    zero: int

    @classmethod
    def between(cls, least: Tensor, most: Tensor) -> Levels:
        """The levels of a range; UnsuitedError for one that is not finite."""
        low, high = (float(rounded_up(x.double() + TINY)) for x in (-least, most))
        if not math.isfinite(low + high):
            raise UnsuitedError("states that are not finite")
        step = (low + high) / LARGEST
        return cls(step, round(low / step))


class StaticLinear:
    """A product of 8-bit integers, weight [N, D], whose input has fixed levels.

    size_D: what the numbers of the input are divided by before they are rounded.
    """

    def __init__(
        self, weight_ND: Tensor, bias_N: Tensor | None, levels: Levels, size_D: Tensor | None = None
    ) -> None:
        if size_D is None:
            size_D = torch.ones(weight_ND.shape[1])
        self.levels, self.bias_N = levels, bias_N
        self.weight, self.scale_N = as_integers(weight_ND * size_D)
        self.zeros_N = torch.zeros(len(weight_ND), dtype=torch.int32)
        self.inverse_D = 1 / (size_D * levels.step)
        self.shift_D = torch.full_like(size_D, ROUNDING + levels.zero)

    def __call__(self, x_TD: Tensor) -> Tensor:
        return self.product(self.rounded(x_TD))

    def rounded(self, x_TD: Tensor) -> Tensor:
        """The nearest level of each number; numbers out of range have the first or the last."""
        shifted_TD = torch.addcmul(self.shift_D, x_TD, self.inverse_D)
        return shifted_TD.clamp_(ROUNDING, ROUNDING + LARGEST).view(torch.int32).to(torch.uint8)

    def product(self, levels_TD: Tensor) -> Tensor:
        """The outputs of an input of levels."""
        return self._with(levels_TD, AS_FLOATS)

    def activated(self, levels_TD: Tensor, activation: Activation, out: Levels) -> Tensor:
        """The outputs after an activation, as levels."""
        name, variant = activation
        return self._with(levels_TD, (out.step, out.zero, torch.uint8, name, [], variant))

    def _with(self, levels_TD: Tensor, asked: tuple[Any, ...]) -> Tensor:
        weights = self.weight, self.scale_N, self.zeros_N
        taken = levels_TD, self.levels.step, self.levels.zero
        out_TN: Tensor = torch.ops.onednn.qlinear_pointwise(*taken, *weights, self.bias_N, *asked)
        return out_TN


class StaticBertLayer(BertLayer):
    """One layer of BERT, RoBERTa or XLM-R, of a layer that has watched the sample."""

    block = BLOCK

    def __init__(self, watched: Any) -> None:
        self.attention, self.activation = watched.attention, watched.activation
        self.size, self.norms = watched.size, watched.norms
        if self.activation not in KNOWN:
            raise UnsuitedError(f"activation {self.activation}")
        self.qkv: Any = _divided(watched.qkv)
        self.out: Any = _divided(watched.out)
        self.steps = _feed_forward(watched.up, watched.down)

    def _after(self, states_TD: Tensor, x_TD: Tensor, out: Tensor | None) -> Tensor:
        x_TD = torch.layer_norm(self.out(states_TD).add_(x_TD), *self.norms[0])
        levels_TD = self.steps[0][0].rounded(x_TD)
        for up, down in self.steps:
            inner_TD = up.activated(levels_TD, self.activation, down.levels)
            x_TD = torch.add(x_TD, down.product(inner_TD), out=x_TD)
        return x_TD if out is None else out.copy_(x_TD)


def _divided(watched: Watched) -> StaticLinear:
    """The product of an input that is divided by its channels' sizes."""
    weight_ND, bias_N = joined(watched.layers, None)
    return StaticLinear(weight_ND, bias_N, *_divided_range(watched))


def _divided_range(watched: Watched) -> tuple[Levels, Tensor]:
    size_D = watched.divisor()
    least_D, most_D = watched.least_D / size_D, watched.most_D / size_D
    return Levels.between(least_D.min(), most_D.max()), size_D


def _feed_forward(up: Watched, down: Watched) -> list[tuple[StaticLinear, StaticLinear]]:
    """Both products: of the usual channels between them, and of those with the largest numbers."""
    (up_weight, up_bias), (down_weight, down_bias) = (
        joined(up.layers, None),
        joined(down.layers, None),
    )
    taken = _divided_range(up)
    few = max(MULTIPLE, len(up_weight) // SHARE // MULTIPLE * MULTIPLE)
    order_N = rounded_up(torch.maximum(-down.least_D, down.most_D) + TINY).argsort(stable=True)
    made = []
    for part_N in (order_N[:-few], order_N[-few:]):
        if not len(part_N):
            continue
        part_N = part_N.sort().values
        levels = Levels.between(down.least_D[part_N].min(), down.most_D[part_N].max())
        bias_N = None if up_bias is None else up_bias[part_N]
        first = StaticLinear(up_weight[part_N], bias_N, *taken)
        made.append((first, StaticLinear(down_weight[:, part_N], down_bias, levels)))
        down_bias = None  # added once
    return made


@dataclass(frozen=True)
class StaticInt8:
    """The kind of products for fused layers; `sample`: texts whose states give the levels."""

    name: ClassVar[str] = "static int8"
    bytes: ClassVar[int] = Int8Linear.bytes
    least_cosine: ClassVar[float | None] = Int8Linear.least_cosine
    hides_nan: ClassVar[bool] = True  # each float has a level
    sample: TokenBatch

    def layers(self, model: Any, inputs: Callable[[TokenBatch], dict[str, Any]]) -> Bert:
        """The layers of a model; UnsuitedError for other families than BERT's."""
        if FAMILIES[type(model).__name__] is not Bert:
            raise UnsuitedError(type(model).__name__)
        found = Bert(model, cast("type[Linear]", Watched))
        for batch in (self.sample, self._drawn(model)):
            for layer in found.layers:
                layer.block = BLOCK
                for watched in (layer.qkv, layer.out, layer.up, layer.down):
                    cast("Any", watched).tokens = len(batch.ids_T)
            deque(found.states(**inputs(batch)), maxlen=0)
        found.layers = [StaticBertLayer(layer) for layer in found.layers]
        found.linear = self
        return found

    def _drawn(self, model: Any) -> TokenBatch:
        """Texts of random ids: their states have a wider range, like those of unusual texts.

        The seed is not that of the check of the layers (runners.Planned._gives_states), which would
        otherwise see the texts that the levels were found on.
        """
        rows, draw = model.config.vocab_size, np.random.default_rng(DRAWN)
        longest = max(self.sample.lengths)
        lengths = [*[min(length, longest) for length in DRAWN_LENGTHS], longest]
        return TokenBatch.of_ids(
            [draw.integers(min(5, rows - 1), rows, length) for length in lengths]
        )


@dataclass(frozen=True)
class WithStatic:
    """Kinds of products, with those of fixed levels before those of levels for each token."""

    kinds: Callable[[], tuple[type[Linear], ...]]
    sample: TokenBatch

    def __call__(self) -> list[Any]:
        found: list[Any] = []
        for kind in self.kinds():
            found += [StaticInt8(self.sample), kind] if kind is Int8Linear else [kind]
        return found
