"""Which tokens see which: one attention function for padding-free batches.

It is registered through transformers' public AttentionInterface, with no mask function,
and receives the layout as a forward keyword, so no model is subclassed or patched.
Texts that lie one behind another never see each other: position ids alone do not
achieve that under sdpa or eager attention (SILENT row 3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from polyvec.errors import ModelError

NAME = "polyvec_packed"


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where texts lie in a packed batch: runs of (number of texts, tokens each), in order."""

    runs: tuple[tuple[int, int], ...]

    def positions(self, device: torch.device) -> Tensor:
        """Position of each token within its own text, [T]."""
        return torch.cat(
            [torch.arange(length, device=device).repeat(count) for count, length in self.runs]
        )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedLayout | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention within each text of a packed batch; query is [1, heads, T, D].

    Texts of equal length go through one kernel call, without any mask.
    Raises ModelError where the layout did not arrive, or where the layer asks for
    something this kernel does not do; a silent substitute would be a wrong vector.
    """
    layer = type(module).__name__
    if packed is None:
        raise ModelError(f"{layer} got no packed layout: call the model through polyvec's Backbone")
    # position_bias: T5's relative positions; the others: Mistral, Gemma 2 and gpt-oss.
    unknown = [
        name
        for name in ("sliding_window", "softcap", "s_aux", "position_bias")
        if kwargs.get(name) is not None
    ]
    if unknown or attention_mask is not None:
        raise ModelError(
            f"{layer} wants {unknown or ['a mask']}, which packed batches do not carry yet"
        )
    causal = bool(getattr(module, "is_causal", False))
    out, start = [], 0
    for count, length in packed.runs:
        piece = slice(start, start + count * length)
        start += count * length
        q, k, v = (_unpack(x, piece, count, length) for x in (query, key, value))
        state = F.scaled_dot_product_attention(
            q,
            k,
            v,
            is_causal=causal and length > 1,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=k.shape[1] != q.shape[1],
        )
        out.append(state.transpose(1, 2).reshape(1, count * length, *state.shape[1::2]))
    return torch.cat(out, dim=1), None


def _unpack(x_1HTD: Tensor, piece: slice, count: int, length: int) -> Tensor:
    """The texts of one run as a batch of their own, [count, heads, length, D]."""
    heads, size = x_1HTD.shape[1], x_1HTD.shape[3]
    return x_1HTD[0, :, piece].reshape(heads, count, length, size).transpose(0, 1)


AttentionInterface.register(NAME, packed_attention)
