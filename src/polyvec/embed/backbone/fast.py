"""Products of 8-bit integers, or of bfloat16, for the fused layers: `dtype="fast"` on the CPU.

Which of them are faster here than float32's is measured once on a machine. States, norms,
attention and sums stay float32.

T tokens of all texts, D numbers in, N numbers out.
"""

import contextlib
import functools
import hashlib
import json
import time
from typing import Any

import torch
from torch import Tensor

from polyvec.embed.backbone.linears import (
    ACTIVATION,
    Activation,
    Linear,
    activated,
    combined,
    exact_linears,
    joined,
)
from polyvec.embed.backbone.processor import kernels
from polyvec.embed.side_by_side import each_on_one_thread
from polyvec.storage.files import cache_folder
from polyvec.storage.hashes import keep

FAST = "fast"  # the dtype that asks for them
FORMAT = 1  # of what is kept of a measurement; another number measures again
LEVELS = 127  # of a number in 8 bits, to each side of zero
# Without VNNI two products are added in 16 bits, which suffice for weights of 7 bits.
LEVELS_IN_16_BITS = 64
# Scale, zero and type of the output, and no other operation.
AS_FLOATS: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
# A token of zeros has no largest number.
TINY = 1e-12
FEW = 32  # tokens, for which fewer operations are faster than less memory
TIMED = (256, 384, 1536)  # tokens, numbers in and out of the product that is timed
ROUNDS = 5
INFINITE = float("inf")
# Integers change vectors more than bfloat16 does, so they must be clearly faster.
GAIN = 1.15


class Bfloat16Linear(Linear):
    """Linear layers of one input as one product of bfloat16; states stay float32."""

    name, bytes, least_cosine = "bfloat16", 2, 0.99

    def __init__(self, *layers: Any, order: Tensor | None = None) -> None:
        weight, bias = joined(layers, order)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), None)
        self.bias = None if bias is None else bias.bfloat16()

    def __call__(self, x_TD: Tensor, activation: Activation = ACTIVATION) -> Tensor:
        return super().__call__(x_TD.bfloat16(), activation).float()

    def with_other(
        self, operation: str, x_TD: Tensor, other_TN: Tensor, out: Tensor | None = None
    ) -> Tensor:
        product_TN = super().__call__(x_TD.bfloat16()).float()  # added in float32
        return combined(operation, product_TN, other_TN, out)


class Int8Linear(Linear):
    """Linear layers of one input as one product of 8-bit integers.

    A weight has a scale for each of its outputs, and the input one for each token, so that the
    vector of a text does not depend on the texts beside it (LLM.int8's vector-wise scales,
    arXiv:2208.07339).
    """

    name, bytes, least_cosine = "int8", 1, 0.95

    def __init__(self, *layers: Any, order: Tensor | None = None) -> None:
        weight, bias = joined(layers, order)
        self.bias_N = torch.zeros(len(weight)) if bias is None else bias
        self.weight, self.scale_N = as_integers(weight)
        self.zeros_N = torch.zeros(len(weight), dtype=torch.int32)
        self.shift_D = torch.full((weight.shape[1],), 2.0**23 + 128)

    def __call__(self, x_TD: Tensor, activation: Activation = ACTIVATION) -> Tensor:
        return activated(self._product(x_TD), activation)

    def with_other(
        self, operation: str, x_TD: Tensor, other_TN: Tensor, out: Tensor | None = None
    ) -> Tensor:
        return combined(operation, self._product(x_TD), other_TN, out)

    def _product(self, x_TD: Tensor) -> Tensor:
        # A query has few tokens: its time goes by the number of these operations.
        step_T1 = _largest(x_TD).clamp_(min=TINY).mul_(1 / LEVELS)
        # Adding 2**23 rounds a float to a whole number and leaves that in its last bits. The
        # kernel takes unsigned numbers: 128 more.
        shifted_TD = torch.addcdiv(self.shift_D, x_TD, step_T1)
        unsigned_TD = shifted_TD.view(torch.int32).to(torch.uint8)
        weights = self.weight, self.scale_N, self.zeros_N
        out_TN: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned_TD, 1.0, 128, *weights, None, *AS_FLOATS
        )
        return torch.addcmul(self.bias_N, out_TN, step_T1, out=out_TN)


def as_integers(weight_ND: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in 8 bits, in the layout of oneDNN's product, and the scale of each output."""
    levels = LEVELS if _sums_are_wide() else LEVELS_IN_16_BITS
    scale_N = weight_ND.abs().amax(dim=1).clamp(min=TINY) / levels
    rounded_ND = (weight_ND / scale_N[:, None]).round().to(torch.int8)
    return torch.ops.onednn.qlinear_prepack(rounded_ND, None), scale_N


def _largest(x_TD: Tensor) -> Tensor:
    """The largest number of each token, whatever its sign, [T, 1]."""
    if len(x_TD) <= FEW:
        return x_TD.abs().amax(dim=1, keepdim=True)
    return torch.maximum(x_TD.amax(dim=1, keepdim=True), x_TD.amin(dim=1, keepdim=True).neg_())


@functools.cache
def _sums_are_wide() -> bool:
    """Whether the largest products are added without overflow, as VNNI and AMX do.

    Tried, as oneDNN may be told to use fewer instructions than the processor has.
    """
    inner, largest = 64, 255
    weight = torch.full((16, inner), LEVELS, dtype=torch.int8)
    weights = torch.ops.onednn.qlinear_prepack(weight, None), torch.ones(16), torch.zeros(16).int()
    for rows in (1, 16, 256):
        x_TD = torch.full((rows, inner), largest, dtype=torch.uint8)
        out_TN = torch.ops.onednn.qlinear_pointwise(x_TD, 1.0, 0, *weights, None, *AS_FLOATS)
        if bool((out_TN != inner * largest * LEVELS).any()):
            return False
    return True


def _has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@functools.cache
def fast_linears() -> tuple[type[Linear], ...]:
    """The kinds of products that are faster here than float32's, the fastest first, and those.

    Measured once and kept in the cache folder: all processes on a machine give the same vectors.
    """
    entry = cache_folder("products") / f"{_key()}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = {kind.name: kind for kind in (Int8Linear, Bfloat16Linear)}
        return (*(known[name] for name in json.loads(entry.read_bytes())), *exact_linears())
    found = _measured()
    keep(entry, [kind.name for kind in found])
    return (*found, *exact_linears())


def _key() -> str:
    """A hash of all that decides how long a product takes here."""
    described = json.dumps([FORMAT, *kernels()])
    return hashlib.sha256(described.encode()).hexdigest()[:32]


def _measured() -> tuple[type[Linear], ...]:
    """Those faster than float32's; bfloat16 only where the processor computes in it."""
    kinds: list[type[Linear]] = [Bfloat16Linear] if _has_bfloat16() else []
    seconds = {kind: _seconds(kind) for kind in (*kinds, *exact_linears(), Int8Linear)}
    # Of float32's the one that is used: the first that this torch has.
    exact = next((seconds[x] for x in exact_linears() if seconds[x] != INFINITE), INFINITE)
    seconds[Int8Linear] *= GAIN
    faster = [kind for kind in (*kinds, Int8Linear) if seconds[kind] * GAIN < exact]
    return tuple(sorted(faster, key=seconds.__getitem__))


def _seconds(kind: type[Linear]) -> float:
    """CPU-seconds of the product at its best, on one thread; no end where this torch lacks it.

    Several threads wait for each other at the end of each operation, and on a busy machine that
    wait, of which integers have more, is longer than the product.
    """
    (best,) = each_on_one_thread(_best, [kind], 1)
    return best


def _best(kind: type[Linear]) -> float:
    tokens, width, inner = TIMED
    draw = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(width, inner).requires_grad_(False)
    x_TD = torch.randn(tokens, width, generator=draw)
    best = INFINITE
    try:
        product = kind(layer)
        for _ in range(ROUNDS):
            start = time.thread_time()
            product(x_TD)
            best = min(best, time.thread_time() - start)
    except (AttributeError, RuntimeError, TypeError):
        return INFINITE
    return best
