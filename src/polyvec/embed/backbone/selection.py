"""Which way to run a model is decided by a measurement on short random texts.

A way is used only if the texts in one batch then have the states that the model itself gives
each of them alone. What the model sees is measured after that (leak_probe.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.backbone import attention, block_sparse
from polyvec.embed.backbone import leak_probe as leaks
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.hooks import FORMS
from polyvec.embed.backbone.modes import evaluating
from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.backbone.runners import Hooked, Native, Planned, call, set_attention
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Relative to the largest state; in half precision leak_probe.tolerance allows more.
TOLERANCE = 1e-4
LENGTHS = (9, 9, 4, 2)
# Windows up to this size are probed with a text beyond them.
PROBED_WINDOW = 512
LAYER_KINDS = {"full_attention", "sliding_attention"}
OWN = AttentionSpec()
# What a model that cannot do something raises, from transformers and from us.
REFUSALS = (ModelError, TypeError, ValueError, IndexError, AttributeError, RuntimeError)


def choose(
    model: PreTrainedModel, pad_id: int, spec: AttentionSpec, layout: str
) -> tuple[Native, str]:
    """The way to run a model, and why: Planned, else Native, else (for another attention) Hooked.

    Raises ModelError if no way satisfies spec and layout ("auto", "packed", "padded").
    """
    native = block_sparse.native(model, pad_id)
    if model.config._attn_implementation == attention.NAME:  # from an earlier backbone
        set_attention(model, "sdpa") or set_attention(model, "eager")
    if layout == "padded" and spec == OWN:
        return native, "asked for"
    with quiet_transformers(), _own_causality(model):
        texts = _texts(model, LENGTHS)
        alone = _alone(native, texts)
        if alone is None:
            return _only_native(native, spec, layout, "the model takes no bare texts")
        own, (planned, reason) = model.config._attn_implementation, _planned(native, alone)
        if planned is None:
            set_attention(model, own)
    if planned is not None:
        planned.packed = layout != "padded"
        return planned, reason if planned.packed else "asked for"
    if layout == "packed":
        raise ModelError(f"{type(model).__name__} cannot run packed: {reason}")
    if spec == OWN or _does_by_itself(native, spec):
        return native, reason
    if isinstance(native, block_sparse.BlockSparse):
        return _only_native(native, spec, layout, reason)
    with quiet_transformers(), _own_causality(model):
        return _hooked(native, spec, alone), reason


def verdict(runner: Native, spec: AttentionSpec) -> leaks.Verdict | None:
    """The leak probe's verdict; None for a model that takes no bare texts.

    Raises ModelError, with family and layer, if it does not agree with `spec`, and for a model
    that cannot run at all.
    """
    vocab = runner.model.config.get_text_config().vocab_size
    ids, other = leaks.probe_ids(vocab)
    if _alone(runner, _texts(runner.model, (3,))) is None:
        _check_last(runner, ids)
        return None

    def run(texts: Sequence[Tensor], prefix: int) -> list[tuple[Tensor, ...]]:
        return layers(runner, texts, AttentionSpec(spec.kind, spec.layer), prefix)

    with _probing(runner.model):
        return leaks.check(run, ids, other, spec)


@contextlib.contextmanager
def _probing(model: PreTrainedModel) -> Iterator[None]:
    """Errors inside name the family; what the model raises is an error that it cannot run."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{type(model).__name__}: {error}") from None
    except REFUSALS as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{type(model).__name__} cannot run short texts ({reason})") from None


@torch.no_grad()
def _check_last(runner: Native, ids: Tensor) -> None:
    """The part of the leak probe that needs no layers: a text alone and beside a longer one.

    Some families run only texts of certain lengths (Funnel of even ones), others give no layers.
    """
    text = ids[: leaks.PROBE_LENGTH]
    with _probing(runner.model):
        alone, beside = (_last(runner, texts)[0] for texts in ([text], [text, ids]))
        leaks.check_beside(alone, beside[: len(text)])


def _last(runner: Native, texts: Sequence[Tensor]) -> Tensor:
    batch = TokenBatch.of_ids([text.numpy() for text in texts])
    with evaluating(runner.model), torch.autocast(runner.model.device.type, enabled=False):
        out = runner.run(batch, OWN, frozenset())
    last = getattr(out, "encoder_last_hidden_state", None)
    return runner.to_padded(out.last_hidden_state if last is None else last, batch)


@torch.no_grad()
def layers(
    runner: Native, texts: Sequence[Tensor], spec: AttentionSpec, prefix: int = 0
) -> list[tuple[Tensor, ...]]:
    """Each text's states after the embeddings and after every layer, [T, D] each."""
    batch = TokenBatch.of_ids([text.numpy() for text in texts])
    if prefix:
        place_T = np.concatenate([np.arange(length) for length in batch.lengths])
        batch.segments_T[:] = place_T >= prefix
    device = runner.model.device.type
    with evaluating(runner.model), torch.autocast(device, enabled=False):
        out = runner.run(batch, spec, frozenset({"all_layers"}))
    last = getattr(out, "encoder_last_hidden_state", None)
    runner.state_size = int((out.last_hidden_state if last is None else last).shape[-1])
    found = [runner.to_padded(state, batch) for state in out.hidden_states]
    return [tuple(state[i, :length] for state in found) for i, length in enumerate(batch.lengths)]


def record_once(runner: Native) -> None:
    """One short forward with all layers, so that transformers adds the hooks that record them."""
    _alone(runner, _texts(runner.model, (3,)))


def register_recording(model: PreTrainedModel) -> None:
    """Tell transformers which outputs a model can record, as its constructor does.

    A process that unpickles a model has not run the constructor; all layers and attention
    weights would be missing there (transformers 5.23).
    """
    from transformers import PreTrainedModel
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            _CAN_RECORD_REGISTRY[module] = module._can_record_outputs


def remove_recording_hooks(model: PreTrainedModel) -> None:
    """Remove transformers' hooks that record states; it adds them again when it needs them."""
    for module in model.modules():
        # The mark by which transformers (5.23) knows that it has added them.
        module.__dict__.pop("_output_capturing_hooks_installed", None)
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "") == "transformers.utils.output_capturing":
                del module._forward_hooks[key]


def declared_offset(model: PreTrainedModel) -> int:
    """Where a position table starts: RoBERTa-style models count from the padding index + 1."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


def stored_spec(model: PreTrainedModel) -> AttentionSpec:
    """The attention that a checkpoint's config declares; native if it declares none."""
    config = model.config.get_text_config()
    if getattr(config, "is_causal", None) is False and _has_causal_layers(model):
        return AttentionSpec("bidirectional")
    return OWN


def _texts(model: PreTrainedModel, lengths: Sequence[int]) -> list[Tensor]:
    """Random ids without the first few, which are special tokens and padding."""
    vocab = getattr(model.config.get_text_config(), "vocab_size", None)
    if vocab is None:
        raise ModelError(f"{type(model).__name__} has no vocabulary of tokens; it is not supported")
    generator = torch.Generator().manual_seed(0)
    low = min(5, vocab - 1)
    return [torch.randint(low, vocab, (n,), generator=generator) for n in lengths]


def _alone(runner: Native, texts: Sequence[Tensor]) -> Tensor | None:
    try:
        return torch.cat([layers(runner, [text], OWN)[0][-1] for text in texts])
    except REFUSALS:
        return None


def _planned(native: Native, alone: Tensor) -> tuple[Planned | None, str]:
    """Our attention function, if packed texts then have the states they have alone."""
    model = native.model
    if isinstance(native, block_sparse.BlockSparse):  # any short text would switch it
        return None, "its attention is block-sparse"
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - LAYER_KINDS
    if kinds:
        return None, f"its config has layers of type {sorted(kinds)[0]}"
    beyond = _beyond_windows(native)
    if not set_attention(model, attention.NAME):
        return None, "its attention cannot be replaced"
    texts = _texts(model, LENGTHS)
    offsets = dict.fromkeys((0, declared_offset(model)))
    runners = [Planned(model, native.pad_id, packed=True, offset=offset) for offset in offsets]
    # In half precision two offsets may both be within the tolerance: the nearer one is right.
    for runner in sorted(runners, key=lambda runner: _error(runner, texts, OWN, alone)):
        same = _equal(runner, texts, OWN, alone) and _windows_arrive(runner, texts)
        if same and (beyond is None or _equal(runner, *beyond)):
            return runner, "probe: packed equals alone"
    return None, "probe: packed differs from alone"


def _beyond_windows(native: Native) -> tuple[list[Tensor], AttentionSpec, Tensor] | None:
    """A text longer than the model's window, if that is short, and its states."""
    config = native.model.config.get_text_config()
    windows = [getattr(config, name, None) or 0 for name in ("sliding_window", "local_attention")]
    window = max(windows)
    limit = getattr(config, "max_position_embeddings", None) or window + 8
    if not 0 < window <= PROBED_WINDOW or window + 4 > limit:
        return None
    texts = _texts(native.model, (window + 4,))
    alone = _alone(native, texts)
    return None if alone is None else (texts, OWN, alone)


@torch.no_grad()
def _windows_arrive(runner: Planned, texts: Sequence[Tensor]) -> bool:
    """Whether layers that see a window only pass it on to the attention function."""
    config = runner.model.config.get_text_config()
    inputs = runner.inputs(TokenBatch.of_ids([text.numpy() for text in texts]), OWN, frozenset())
    with evaluating(runner.model):
        call(runner.model, frozenset(), **inputs)
    kinds = getattr(config, "layer_types", None)
    wanted = getattr(config, "sliding_window", None)
    return all(
        (window is not None) == (kinds[layer] == "sliding_attention" if kinds else bool(wanted))
        for layer, window in inputs["plan"].windows.items()
    )


def _equal(runner: Native, texts: Sequence[Tensor], spec: AttentionSpec, alone: Tensor) -> bool:
    return _error(runner, texts, spec, alone) <= leaks.tolerance(TOLERANCE, alone.dtype)


def _error(runner: Native, texts: Sequence[Tensor], spec: AttentionSpec, alone: Tensor) -> float:
    """The largest difference to the texts' states alone, relative to the largest state."""
    try:
        together = torch.cat([states[-1] for states in layers(runner, texts, spec)])
    except REFUSALS:
        return math.inf
    return float((together - alone).abs().max() / alone.abs().max().clamp(min=1))


def _hooked(native: Native, spec: AttentionSpec, alone: Tensor) -> Hooked:
    """Masks in each layer, if causal ones then reproduce the model's own states."""
    for form in FORMS:
        runner = Hooked(native.model, native.pad_id, form)
        if _equal(runner, _texts(native.model, LENGTHS), AttentionSpec("causal"), alone):
            return runner
    raise ModelError(
        f"{type(native.model).__name__} cannot be made {str(spec)!r}: its attention is not on "
        "transformers' AttentionInterface and its layers take no masks; use attention 'native'"
    )


def _only_native(
    native: Native, spec: AttentionSpec, layout: str, reason: str
) -> tuple[Native, str]:
    if layout == "packed" or spec.kind not in ("native", "bidirectional"):
        asked = "run packed" if layout == "packed" else f"be made {str(spec)!r}"
        raise ModelError(f"{type(native.model).__name__} cannot {asked}: {reason}")
    return native, reason


def _does_by_itself(native: Native, spec: AttentionSpec) -> bool:
    """Whether the model's own attention already agrees with the spec."""
    if spec.blocked:
        return False
    with contextlib.suppress(ModelError):
        verdict(native, spec)
        return True
    return False


def _has_causal_layers(model: PreTrainedModel) -> bool:
    return any(getattr(module, "is_causal", False) for module in model.modules())


@contextlib.contextmanager
def _own_causality(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a decoder that its config declares bidirectional is causal, as it was built.

    transformers' own bidirectional masks have another window than flash kernels, so models are
    compared in the mode that has one definition.
    """
    config = model.config.get_text_config()
    declared = getattr(config, "is_causal", None)
    if declared is not False or not _has_causal_layers(model):
        yield
        return
    config.is_causal = True
    try:
        yield
    finally:
        config.is_causal = declared
