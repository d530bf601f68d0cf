"""Packed texts of any lengths in one flash-attention kernel, on GPUs in half precision.

T tokens of all texts, H heads, D size of a head.
"""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
MAX_HEAD = 256


@functools.cache
def kernel() -> Any:
    """torch's kernel, if this torch has one, and it takes windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


@functools.cache
def flash_device(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def serves(
    mode: str,
    query: Tensor,
    value: Tensor,
    *,
    blocked: bool,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
    **_: Any,
) -> bool:
    """Whether the kernel can do it: no other masks than a window, no dropout.

    blocked: whether segments are hidden from others.
    """
    return (
        flash_device(query.device)
        and kernel() is not None
        and half(query) in HALF
        and query.shape[-1] == value.shape[-1] <= MAX_HEAD
        and mode in ("causal", "bidirectional")
        and not blocked
        and not dropout
        and softcap is None
        and sinks is None
    )


def half(query: Tensor) -> torch.dtype:
    """The precision that attention has: autocast's where it is on."""
    if torch.is_autocast_enabled(query.device.type):
        return torch.get_autocast_dtype(query.device.type)
    return query.dtype


def sides(mode: str, window: int | None) -> tuple[int, int]:
    """How many tokens to the left and right a token sees beside itself; -1: all."""
    near = -1 if window is None else window - 1
    return near, 0 if mode == "causal" else near


def attend(
    mode: str,
    window: int | None,
    starts: Tensor,
    longest: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
) -> Tensor:
    """States of packed texts, [1, T, H, D], of query [1, H, T, D].

    starts: where each text begins, and the end of the last, int32 [texts + 1].
    """
    found, options = kernel(), {}
    heads, kinds = query.shape[1], key.shape[1]
    if heads != kinds:
        if "enable_gqa" in inspect.signature(found).parameters:
            options["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(heads // kinds, 1) for x in (key, value))
    dtype = half(query)
    out: Tensor = found(
        *(x[0].transpose(0, 1).to(dtype) for x in (query, key, value)),
        *(starts, starts, longest, longest),
        scale=scaling,
        window_size=sides(mode, window),
        **options,
    )
    return out[None]
