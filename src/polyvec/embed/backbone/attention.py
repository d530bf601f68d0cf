"""Which tokens see which: one attention function for all modes, with and without padding.

It is registered through transformers' public AttentionInterface, with no mask function, and
gets an immutable plan as a forward keyword. So no model is subclassed or patched, and gradient
checkpointing recomputes a layer with the same plan. Packed texts never see each other: position
ids alone do not achieve that under sdpa or eager attention (SILENT row 3). Windows have one
definition (SILENT row 6).

B texts, T tokens of the longest or, packed, of all, H heads, D size of a head.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.embed.backbone import varlen
from polyvec.errors import ModelError, SettingsError, known

NAME = "polyvec"
LANES = 16  # float32 numbers that AVX-512 computes at once
FEW = 4  # keys that torch's kernel computes faster as they are
KINDS = ("native", "causal", "bidirectional", "last-K", "from-K", "prefix")


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The attention that a recipe asks for: which layers see what.

    native: the model's own. causal, bidirectional: all layers. last-K: the
    last K layers are bidirectional, the others causal (BeLLM, arXiv:2311.05296); from-K:
    those from layer K on, counted from 0. prefix: tokens of segment 0 see each other, later
    segments are causal. `blocked` holds pairs (a segment, one that it may not see): the
    masks of ChatRetriever (arXiv:2404.13556), Llama2Vec (arXiv:2312.15503) and gist tokens.
    """

    kind: str = "native"
    layer: int = 0
    blocked: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str, blocked: tuple[tuple[int, int], ...] = ()) -> "AttentionSpec":
        """The spec of a setting such as "last-2"; SettingsError for an unknown one."""
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
            raise ModelError(
                f"attention {self}: a model of {num_layers} layers has last-1 to last-{num_layers} "
                f"and from-0 to from-{num_layers - 1}"
            )
        return ("causal",) * start + ("bidirectional",) * (num_layers - start)


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """What each layer of one forward may see, and whether its batch is packed or padded.

    Packed: `runs` of (number of texts, tokens each) in order, in one row. Padded: `real_BT` says
    which tokens are real; padding may be on either side. `prefix` has a length for each text,
    `segments` the segment of each token, [T] or [B, T]. `past_BP`: which places of a cache of
    keys are real; all tokens of a padded batch see those. `apart`: no text's keys are read with
    another's, even to be hidden.
    """

    modes: tuple[str, ...]
    runs: tuple[tuple[int, int], ...] | None = None
    real_BT: Tensor | None = None
    prefix: Tensor | None = None
    segments: Tensor | None = None
    blocked: tuple[tuple[int, int], ...] = ()
    weights: bool = False
    past_BP: Tensor | None = None
    apart: bool = False
    # Layers of one forward share masks; probes read the windows that layers asked for.
    masks: dict[tuple[str, int | None, int], Tensor | None] = field(default_factory=dict)
    starts: dict[torch.device, Tensor] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)

    @property
    def positions(self) -> Tensor:
        """Position of each token in its own text: [T] packed, [B, T] padded."""
        if self.runs is None:
            assert self.real_BT is not None
            return (self.real_BT.long().cumsum(-1) - 1).clamp(min=0)
        places = [np.tile(np.arange(length), count) for count, length in self.runs]
        return torch.from_numpy(np.concatenate(places))

    def spare(self) -> int:
        """Rows that packed keys and values need behind their tokens, to be computed in lanes."""
        assert self.runs is not None
        if self.apart:
            return 0
        end = most = 0
        for count, length in self.runs:
            end += count * length
            most = max(most, end + _missing(length))
        return most - end

    def starts_on(self, device: torch.device) -> Tensor:
        """Where each packed text begins, and the end of the last, int32 [texts + 1]."""
        if device not in self.starts:
            assert self.runs is not None
            lengths = [length for count, length in self.runs for _ in range(count)]
            ends = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
            self.starts[device] = ends
        return self.starts[device]

    def mode(self, module: nn.Module) -> str:
        """The mode of the layer that a module belongs to."""
        layer = getattr(module, "layer_idx", None)
        if layer is None and len(set(self.modes)) > 1:
            raise ModelError(f"{type(module).__name__} has no layer_idx, which {self.modes} needs")
        mode = self.modes[layer or 0] if self.modes else "native"
        if mode != "native":
            return mode
        return "causal" if getattr(module, "is_causal", False) else "bidirectional"

    def mask(self, mode: str, window: int | None, run: int, device: torch.device) -> Tensor | None:
        """[texts, 1, T, T], True where seen, of a run or of the padded batch; None: no mask needed.

        The only definition of every mode: kernels without a mask must agree with it.
        """
        key = (mode, window, run)
        if key not in self.masks:
            self.masks[key] = self._mask(mode, window, run, device)
        return self.masks[key]

    def hidden(self, length: int, rows: int) -> Tensor:
        """[1, 1, 1, rows], to be added to scores: the keys behind a text's own are not seen."""
        key = ("hidden", None, length)
        found = self.masks.get(key)
        if found is None:
            found = self.masks[key] = torch.zeros(1, 1, 1, rows)
            found[..., length:] = -torch.inf
        return found

    def _mask(self, mode: str, window: int | None, run: int, device: torch.device) -> Tensor | None:
        count, length, position_BT, real_BT = self._texts(run, device)
        near = window is None or length <= window
        if self.past_BP is not None:
            if self.runs is not None or window is not None:
                raise ModelError("a cache of keys needs a padded batch, and layers without windows")
            real_BT = self.real_BT
        elif near and real_BT is None and mode != "prefix" and not self.blocked:
            return None
        query, key = position_BT[:, :, None], position_BT[:, None, :]
        seen = torch.ones_like(query == key) if mode == "bidirectional" else key <= query
        if mode == "prefix":
            inside = self._prefix(run, count, device)[:, None, None]
            seen = seen | ((query < inside) & (key < inside))
        if window is not None:
            # As in flash kernels: w tokens to each side, counting the token itself.
            seen = seen & ((query - key).abs() < window)
        if self.blocked:
            segment_BT = self._segments(run, count, length, device)
            for of, hidden in self.blocked:
                seen = seen & ~((segment_BT == of)[:, :, None] & (segment_BT == hidden)[:, None, :])
        if real_BT is not None:
            # Padding sees itself: a softmax over nothing would be NaN.
            alone = torch.eye(length, dtype=torch.bool, device=device)
            seen = (seen & real_BT[:, None, :]) | (~real_BT[:, :, None] & alone)
        if self.past_BP is not None:
            past = self.past_BP.to(device)[:, None].expand(-1, length, -1)
            seen = torch.cat([past, seen.expand(len(past), -1, -1)], dim=2)
        return seen[:, None]

    def _texts(self, run: int, device: torch.device) -> tuple[int, int, Tensor, Tensor | None]:
        """Number of texts, their length, positions, and which tokens are real if not all are."""
        if self.runs is None:
            assert self.real_BT is not None
            full = bool(self.real_BT.all())
            count, length = self.real_BT.shape
            return count, length, self.positions, None if full else self.real_BT
        count, length = self.runs[run]
        return count, length, torch.arange(length, device=device)[None], None

    def _prefix(self, run: int, count: int, device: torch.device) -> Tensor:
        if self.prefix is None:
            raise ModelError("attention 'prefix' needs the length of each text's prefix")
        first = sum(texts for texts, _ in self.runs[:run]) if self.runs else 0
        return self.prefix[first : first + count].to(device)

    def _segments(self, run: int, count: int, length: int, device: torch.device) -> Tensor:
        if self.segments is None:
            raise ModelError("a mask between segments needs the segment of each token")
        if self.runs is None:
            return self.segments.to(device)
        first = sum(texts * tokens for texts, tokens in self.runs[:run])
        return self.segments[first : first + count * length].to(device).view(count, length)


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
    in_lanes: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the plan says; query is [B, H, T, D], packed [1, H, T, D].

    in_lanes: packed keys and values have `plan.spare()` rows of finite numbers behind them, in
    float32 on a CPU without gradients. Then each text is computed with as many rows behind its
    own, hidden from it, as fill up LANES, which takes torch's kernel up to a third less time.

    Packed texts go through one kernel for any lengths where there is one (`varlen`), else those of
    equal length through one call, without a mask where the mode needs none. Raises ModelError if
    the plan did not arrive, or if the layer asks for something that is not supported here: a
    silent substitute would give wrong vectors.
    """
    layer = type(module).__name__
    if plan is None:
        raise ModelError(f"{layer} got no attention plan; call the model through a Backbone")
    if kwargs.get("position_bias") is not None or attention_mask is not None:
        raise ModelError(f"{layer} passes a position bias or a mask, which a plan cannot replace")
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
        raise ModelError("attention weights need a padded batch, this one is packed")
    if varlen.serves(mode, query, value, blocked=bool(plan.blocked), **options):
        starts = plan.starts_on(query.device)
        longest = max(length for _, length in plan.runs)
        asked = (mode, sliding_window, starts, longest)
        return varlen.attend(*asked, query, key, value, options["scaling"]), None
    states = []
    texts = _in_lanes if in_lanes else _as_they_are
    for q, k, v, mask in texts(plan, mode, sliding_window, query, key, value):
        out, _ = attend(q, k, v, mask, mode == "causal" and q.shape[2] > 1, **options)
        states.append(out.transpose(1, 2).reshape(1, -1, *out.shape[1::2]))
    return states[0] if len(states) == 1 else torch.cat(states, dim=1), None


Texts = Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]


def _as_they_are(
    plan: AttentionPlan, mode: str, window: int | None, query: Tensor, key: Tensor, value: Tensor
) -> Texts:
    """Query, key, value and mask of packed texts, those of equal length at once.

    Without a mask where the mode needs none.
    """
    assert plan.runs is not None
    # Split at once: the backward pass of a slice for each run would write the whole tensor
    # each time, which made training on a GPU 20 times as slow as encoding.
    parts: Iterable[Sequence[Tensor]] = [(query, key, value)]
    if len(plan.runs) > 1:
        sizes = [count * length for count, length in plan.runs]
        parts = zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    for run, ((count, length), found) in enumerate(zip(plan.runs, parts, strict=True)):
        q, k, v = [_unpack(x, count, length) for x in found] if count > 1 else found
        yield q, k, v, plan.mask(mode, window, run, query.device)


def _in_lanes(
    plan: AttentionPlan, mode: str, window: int | None, query: Tensor, key: Tensor, value: Tensor
) -> Texts:
    """As `_as_they_are`, with keys and values behind a text's own, hidden from it."""
    assert plan.runs is not None
    start = 0
    for run, (count, length) in enumerate(plan.runs):
        mask = plan.mask(mode, window, run, query.device)
        missing = _missing(length) if mask is None else 0
        if missing and mode != "causal":
            mask = plan.hidden(length, length + missing)
        place = start, count, length
        start += count * length
        k, v = (_with_rows_behind(x, *place, length + missing) for x in (key, value))
        yield _with_rows_behind(query, *place, length), k, v, mask


def _missing(length: int) -> int:
    """Keys that a text of this length lacks to be computed in lanes."""
    return -length % LANES if length > FEW else 0


def _with_rows_behind(x_1HTD: Tensor, start: int, count: int, length: int, rows: int) -> Tensor:
    """Texts from `start` on, [count, H, rows, D]: rows behind a text are those of the next."""
    _, head, token, number = x_1HTD.stride()
    shape = count, x_1HTD.shape[1], rows, x_1HTD.shape[3]
    first = x_1HTD.storage_offset() + start * token
    return x_1HTD.as_strided(shape, (length * token, head, token, number), first)


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
    """One kernel call, [B, H, T, D]; in steps for softcaps (Gemma 2), sinks (gpt-oss), weights."""
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


def _unpack(x_1HTD: Tensor, count: int, length: int) -> Tensor:
    """The texts of one run as a batch, [count, H, length, D]."""
    _, heads, _, size = x_1HTD.shape
    return x_1HTD.reshape(heads, count, length, size).transpose(0, 1)


def register() -> None:
    """Make `plan_attention` known to transformers, once, when a model first needs it."""
    from transformers import AttentionInterface

    if NAME not in AttentionInterface().valid_keys():
        AttentionInterface.register(NAME, plan_attention)
