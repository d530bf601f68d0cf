"""Probes of a model in half precision look at a float32 copy of it.

What a model sees is a matter of masks and positions, not of rounding. In bfloat16 a token's
share in another one's state may be smaller than the rounding of that state, so that no
tolerance tells a leak from noise: right models were refused, and wrong offsets fitted. After
the copy has decided, the model itself must not contradict it clearly.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyvec.embed.backbone import leak_probe as leaks
from polyvec.embed.backbone import selection
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.runners import Native, set_attention
from polyvec.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HALVES = (torch.bfloat16, torch.float16)
# A copy of a larger model may not fit; it is made only if the model itself seems to be wrong.
COPIED = 1_500_000_000
# A share in the largest state that rounding of a right model does not reach, but a leak does.
CLEAR = 0.5

Choice = tuple[Native, str, leaks.Verdict | None]


def probed(model: PreTrainedModel, pad_id: int, spec: AttentionSpec, layout: str) -> Choice:
    """The way to run a model, why, and what the leak probe found; ModelError as the probes."""
    if not _is_half(model):
        return _choice(model, pad_id, spec, layout)
    if sum(parameter.numel() for parameter in model.parameters()) <= COPIED:
        judge = _float32(model)
        if judge is not None:
            return _judged(model, judge, pad_id, spec, layout)
    try:
        return _choice(model, pad_id, spec, layout)
    except ModelError:
        judge = _float32(model)
        if judge is None:
            raise
    return _judged(model, judge, pad_id, spec, layout)


def _choice(model: PreTrainedModel, pad_id: int, spec: AttentionSpec, layout: str) -> Choice:
    runner, reason = selection.choose(model, pad_id, spec, layout)
    return runner, reason, selection.verdict(runner, spec)


def _judged(
    model: PreTrainedModel, judge: PreTrainedModel, pad_id: int, spec: AttentionSpec, layout: str
) -> Choice:
    found, reason, verdict = _choice(judge, pad_id, spec, layout)
    own = judge.config._attn_implementation
    runner = found.of(model)
    if model.config._attn_implementation != own:
        set_attention(model, own)
    if verdict is not None:
        with _named(model):
            _check(_Sight.of(runner, spec), _Sight.of(found, spec), verdict)
    return runner, reason, verdict


@dataclass(frozen=True, slots=True)
class _Sight:
    """What moves in the states of a text, relative to the largest state of a layer.

    `beside`: the last layer's, in a batch with a longer text. `early`: those of all layers
    before the last token, when that one is replaced; before the prefix's end for "prefix".
    """

    dtype: torch.dtype
    finite: bool
    beside: float
    early: float

    @classmethod
    def of(cls, runner: Native, spec: AttentionSpec) -> _Sight:
        """The smaller changes of two texts: rounding may send one token to another expert."""
        ids, other = leaks.probe_ids(runner.model.config.get_text_config().vocab_size)
        one, two = (cls._of_text(runner, spec, x, other) for x in (ids, ids.flip(0)))
        finite = one.finite and two.finite
        return cls(one.dtype, finite, min(one.beside, two.beside), min(one.early, two.early))

    @classmethod
    def _of_text(cls, runner: Native, spec: AttentionSpec, ids: Tensor, other: int) -> _Sight:
        prefix = leaks.PREFIX_LENGTH if spec.kind == "prefix" else 0
        own = AttentionSpec(spec.kind, spec.layer)
        place = (prefix or leaks.PROBE_LENGTH) - 1
        text = ids[: leaks.PROBE_LENGTH]
        (alone,) = selection.layers(runner, [text], own, prefix)
        beside = selection.layers(runner, [text, ids], own, prefix)[0]
        changed = leaks.replaced(text, place, other)
        (after,) = selection.layers(runner, [changed], own, prefix)
        early = [leaks.movement(a[:place], b[:place]) for a, b in zip(alone, after, strict=True)]
        return cls(
            alone[-1].dtype,
            all(bool(state.isfinite().all()) for state in (*alone, *beside)),
            leaks.movement(alone[-1].float(), beside[-1].float()),
            max(early),
        )


def _check(half: _Sight, full: _Sight, verdict: leaks.Verdict) -> None:
    """Raises ModelError where the model in half precision is clearly another than its copy."""
    name = str(half.dtype).removeprefix("torch.")
    if full.finite and not half.finite:
        raise ModelError(
            f"the states overflow in {name}, vectors would be NaN; use dtype='bfloat16' or "
            "dtype='float32'"
        )
    eps = torch.finfo(half.dtype).eps
    deaf = verdict.first_layer and not half.early and full.early > leaks.ROUNDINGS * eps
    leaking = not verdict.first_layer and half.early > CLEAR
    if half.beside > CLEAR or deaf or leaking:
        raise ModelError(
            f"in {name} tokens see others than in float32, where the model is {verdict}; "
            "use dtype='float32', or report its family as a bug"
        )


@contextlib.contextmanager
def _named(model: PreTrainedModel) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{type(model).__name__}: {error}") from None
    except selection.REFUSALS as error:  # XLNet multiplies float32 positions by states in halves
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{type(model).__name__} cannot run in half precision ({reason}); use dtype='float32'"
        ) from None


def _is_half(model: PreTrainedModel) -> bool:
    return any(parameter.dtype in HALVES for parameter in model.parameters())


def _float32(model: PreTrainedModel) -> PreTrainedModel | None:
    """A copy in float32; None where there is no memory for it, or weights are quantised."""
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "hf_device_map", None):
        return None
    try:
        return copy.deepcopy(model).float().eval()
    except RuntimeError:  # out of memory
        return None
