"""Which tokens see which: one attention function for all modes, with and without padding.

It is registered through transformers' public AttentionInterface, with no mask function,
and receives an immutable plan as a forward keyword, so no model is subclassed or patched
and a checkpointed layer that is computed again sees the same plan. Texts that lie one
behind another never see each other: position ids alone do not achieve that under sdpa or
eager attention (SILENT row 3). Windows have one definition (SILENT row 6).

B texts, T tokens of the longest, T tokens of all, H heads, D size of a head.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from polyvec.errors import ModelError, SettingsError, known

NAME = "polyvec"
KINDS = ("native", "causal", "bidirectional", "last-K", "from-K", "prefix")


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What a recipe asks for: which layers see what.

    native: what the model does by itself. causal, bidirectional: all layers. last-K: the
    last K layers are bidirectional, the others causal (BeLLM, arXiv:2311.05296); from-K:
    those from layer K on, counted from 0. prefix: tokens of part 0 see each other, later
    parts are causal. `blocked` holds pairs (part that looks, part that it may not see): the
    masks of ChatRetriever (arXiv:2404.13556), Llama2Vec (arXiv:2312.15503) and gist tokens.
    """

    kind: str = "native"
    layer: int = 0
    blocked: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str, blocked: tuple[tuple[int, int], ...] = ()) -> "AttentionSpec":
        """The spec that a setting such as "last-2" names; SettingsError for others."""
        found = re.fullmatch(r"(last|from)-(\d+)", text)
        if found:
            return cls(found[1], int(found[2]), blocked)
        if text in KINDS and "-" not in text:
            return cls(text, 0, blocked)
        raise SettingsError(f"attention {text!r} is not known.{known(text, KINDS)}")

    def __str__(self) -> str:
        return f"{self.kind}-{self.layer}" if self.kind in ("last", "from") else self.kind

    def modes(self, num_layers: int) -> tuple[str, ...]:
        """The mode of each layer: "native", "causal", "bidirectional" or "prefix".

        Raises ModelError if K is not between 1 and the number of layers (from-K: 0 and less).
        """
        if self.kind not in ("last", "from"):
            return (self.kind,) * num_layers
        start = num_layers - self.layer if self.kind == "last" else self.layer
        if not 0 <= start < num_layers:
            raise ModelError(f"attention {self} makes no sense in a model of {num_layers} layers")
        return ("causal",) * start + ("bidirectional",) * (num_layers - start)


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """What every layer of one forward may see, and how its batch is laid out.

    Packed: `runs` of (number of texts, tokens each) in order, in one row. Padded: `real_BT`
    says which tokens are real, on whichever side the padding is. `prefix` has a length for
    each text, `segments` the segment of each token, [T] or [B, T].
    """

    modes: tuple[str, ...]
    runs: tuple[tuple[int, int], ...] | None = None
    real_BT: Tensor | None = None
    prefix: Tensor | None = None
    segments: Tensor | None = None
    blocked: tuple[tuple[int, int], ...] = ()
    weights: bool = False
    # Layers of one forward share masks; what the layers asked for is kept for probes.
    masks: dict = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)

    @property
    def positions(self) -> Tensor:
        """Position of each token within its own text: [T] packed, [B, T] padded."""
        if self.runs is None:
            assert self.real_BT is not None
            return (self.real_BT.long().cumsum(-1) - 1).clamp(min=0)
        return torch.cat([torch.arange(length).repeat(count) for count, length in self.runs])

    def causal(self, module: nn.Module) -> bool:
        return self.mode(module) in ("causal", "prefix")

    def mode(self, module: nn.Module) -> str:
        """The mode of the layer that a module belongs to."""
        layer = getattr(module, "layer_idx", None)
        if layer is None and len(set(self.modes)) > 1:
            raise ModelError(f"{type(module).__name__} does not know which layer it is")
        mode = self.modes[layer or 0] if self.modes else "native"
        if mode != "native":
            return mode
        return "causal" if getattr(module, "is_causal", False) else "bidirectional"

    def mask(self, mode: str, window: int | None, piece: int, device: torch.device):
        """[texts, 1, T, T], True where seen, of a run or of the padded batch; None: all seen.

        The only definition of every mode: kernels without a mask must agree with it.
        """
        key = (mode, window, piece)
        if key not in self.masks:
            self.masks[key] = self._mask(mode, window, piece, device)
        return self.masks[key]

    def _mask(self, mode: str, window: int | None, piece: int, device: torch.device):
        count, length, position_BT, real_BT = self._piece(piece, device)
        near = window is None or length <= window
        if near and real_BT is None and mode != "prefix" and not self.blocked:
            return None
        query, key = position_BT[:, :, None], position_BT[:, None, :]
        seen = torch.ones_like(query == key) if mode == "bidirectional" else key <= query
        if mode == "prefix":
            inside = self._prefix(piece, count, device)[:, None, None]
            seen = seen | ((query < inside) & (key < inside))
        if window is not None:
            # As in flash kernels: w tokens to each side, the token itself among them.
            seen = seen & ((query - key).abs() < window)
        if self.blocked:
            segment_BT = self._parts(piece, count, length, device)
            for looks, hidden in self.blocked:
                seen = seen & ~(
                    (segment_BT == looks)[:, :, None] & (segment_BT == hidden)[:, None, :]
                )
        if real_BT is not None:
            # Padding sees itself, so that no softmax is over nothing.
            alone = torch.eye(length, dtype=torch.bool, device=device)
            seen = (seen & real_BT[:, None, :]) | (~real_BT[:, :, None] & alone)
        return seen[:, None]

    def _piece(self, piece: int, device: torch.device):
        if self.runs is None:
            assert self.real_BT is not None
            full = bool(self.real_BT.all())
            count, length = self.real_BT.shape
            return count, length, self.positions, None if full else self.real_BT
        count, length = self.runs[piece]
        return count, length, torch.arange(length, device=device)[None], None

    def _prefix(self, piece: int, count: int, device: torch.device) -> Tensor:
        if self.prefix is None:
            raise ModelError("attention 'prefix' got no prefix lengths")
        first = sum(texts for texts, _ in self.runs[:piece]) if self.runs else 0
        return self.prefix[first : first + count].to(device)

    def _parts(self, piece: int, count: int, length: int, device: torch.device) -> Tensor:
        if self.segments is None:
            raise ModelError("a mask between segments got no segments")
        if self.runs is None:
            return self.segments.to(device)
        first = sum(texts * tokens for texts, tokens in self.runs[:piece])
        return self.segments[first : first + count * length].to(device).view(count, length)

    def pieces(self) -> Iterator[tuple[int, int, slice]]:
        """Packed runs as (texts, tokens each, where they lie)."""
        start = 0
        for count, length in self.runs or ():
            yield count, length, slice(start, start + count * length)
            start += count * length


def plan_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    plan: AttentionPlan | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the plan says; query is [B, H, T, D], packed [1, H, T, D].

    Packed texts of equal length go through one kernel call, without a mask where the mode
    needs none. Raises ModelError where the plan did not arrive, or where the layer asks for
    something this function does not do; a silent substitute would be a wrong vector.
    """
    layer = type(module).__name__
    if plan is None:
        raise ModelError(f"{layer} got no attention plan: call the model through a Backbone")
    if kwargs.get("position_bias") is not None or attention_mask is not None:  # T5's, or a mask
        raise ModelError(f"{layer} wants a position bias or a mask, which plans do not carry")
    plan.windows[getattr(module, "layer_idx", None) or 0] = sliding_window
    mode = plan.mode(module)
    options: dict[str, Any] = {
        "scaling": scaling if scaling is not None else query.shape[-1] ** -0.5,
        "dropout": dropout, "softcap": softcap, "sinks": s_aux, "weights": plan.weights,
    }  # fmt: skip
    if plan.runs is None:
        mask = plan.mask(mode, sliding_window, 0, query.device)
        out, weights = attend(query, key, value, mask, mode == "causal", **options)
        return out.transpose(1, 2).contiguous(), weights
    if plan.weights:
        raise ModelError("attention weights are given for padded batches only")
    states = []
    for place, (count, length, piece) in enumerate(plan.pieces()):
        q, k, v = (_unpack(x, piece, count, length) for x in (query, key, value))
        mask = plan.mask(mode, sliding_window, place, query.device)
        out, _ = attend(q, k, v, mask, mode == "causal" and length > 1, **options)
        states.append(out.transpose(1, 2).reshape(1, count * length, *out.shape[1::2]))
    return torch.cat(states, dim=1), None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    *,
    scaling: float,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
    weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """One kernel call, [B, H, T, D]; softcaps (Gemma 2), sinks (gpt-oss) and weights by hand."""
    if softcap is None and sinks is None and not weights:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal and mask is None,
            scale=scaling, dropout_p=dropout, enable_gqa=key.shape[1] != query.shape[1],
        )  # fmt: skip
        return out, None
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None and causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], dim=-1)
    share = scores.float().softmax(-1).to(query.dtype)[..., : key.shape[2]]
    return F.dropout(share, dropout) @ value, share if weights else None


def _unpack(x_1HTD: Tensor, piece: slice, count: int, length: int) -> Tensor:
    """The texts of one run as a batch of their own, [count, H, length, D]."""
    heads, size = x_1HTD.shape[1], x_1HTD.shape[3]
    return x_1HTD[0, :, piece].reshape(heads, count, length, size).transpose(0, 1)


AttentionInterface.register(NAME, plan_attention)
