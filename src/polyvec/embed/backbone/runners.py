"""The three ways to run a batch: by our attention function, by the model's own, by masks.

B texts, T tokens of the longest or, packed, of all, D state size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections import deque
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed.backbone.attention import NAME, AttentionPlan, AttentionSpec, register
from polyvec.embed.backbone.fused import Fused, FusedModel
from polyvec.embed.backbone.hooks import LayerMasks, changing, install, open_buffers
from polyvec.embed.backbone.modes import evaluated
from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.backbone.rotary import texts_of
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Needs = frozenset[str]
OWN = AttentionSpec()
# Side outputs that the fused layers can give: those that are made of states.
FUSED_NEEDS = frozenset({"all_layers", "lm_head", "generate"})
FUSED_TOLERANCE = 1e-5  # relative to the largest state
PROBED_LENGTHS = (9, 9, 4)


class Native:
    """Padded on the right, with the model's own attention.

    The only way for encoder-decoders, state-space models and position biases, and the reference
    that the other two must reproduce.
    """

    name, packed = "native", False
    state_size: int | None = None  # as the probes measured it

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id

    def of(self, model: PreTrainedModel) -> Native:
        """The same way to run another copy of the model."""
        return type(self)(model, self.pad_id)

    def run(self, batch: TokenBatch, spec: AttentionSpec, needs: Needs) -> Any:
        """The model's output for the batch."""
        if spec.blocked:
            raise ModelError(
                f"{type(self.model).__name__} runs its own attention, without segments"
            )
        self._check_positions(batch)
        ids_BT, attention_mask_BT = self._padded(batch)
        types = padded_types(batch, attention_mask_BT)
        with texts_of(batch.lengths):
            return call(
                self.model,
                needs,
                input_ids=ids_BT,
                attention_mask=attention_mask_BT.long(),
                **types,
            )

    def _check_positions(self, batch: TokenBatch) -> None:
        if batch.positions_T is not None:
            raise ModelError(f"{type(self.model).__name__} takes no positions beside its own")

    def to_padded(self, state: Tensor, batch: TokenBatch) -> Tensor:
        """A state of the output as [B, T, D]; padding may hold anything."""
        return state.reshape(len(batch.lengths), max(batch.lengths), -1)

    def _padded(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        attention_mask_BT = attention_mask(batch, self.model.device)
        ids_BT = torch.full(attention_mask_BT.shape, self.pad_id, device=attention_mask_BT.device)
        return ids_BT.masked_scatter_(
            attention_mask_BT, torch.from_numpy(batch.ids_T).to(ids_BT)
        ), attention_mask_BT


class Planned(Native):
    """By our attention function: packed, or padded where attention weights are needed."""

    name = "plan"

    def __init__(self, model: PreTrainedModel, pad_id: int, *, packed: bool, offset: int) -> None:
        super().__init__(model, pad_id)
        self.packed, self.offset = packed, offset
        self.fused: FusedModel | None = None  # not while the probes look at the model itself

    def of(self, model: PreTrainedModel) -> Native:
        set_attention(model, NAME)
        return Planned(model, self.pad_id, packed=self.packed, offset=self.offset)

    def run(self, batch: TokenBatch, spec: AttentionSpec, needs: Needs) -> Any:
        fused = self._fused(needs)
        if fused is not None and fused.short is not None and fused.short.takes(batch, spec, needs):
            return fused_output([self._short_states(fused, batch)], needs)
        inputs = self.inputs(batch, spec, needs)
        with texts_of(batch.lengths):
            if fused is not None:
                return fused_states(fused, inputs, needs)
            return call(self.model, needs, **inputs)

    def _fused(self, needs: Needs) -> Fused | None:
        """The fused layers, where they can compute what is asked for."""
        if self.fused is None:
            return None
        if torch.is_grad_enabled() or self.model.training:
            self.fused.drop()  # an optimiser's step may follow
            return None
        if not self.packed or needs - FUSED_NEEDS:
            return None
        return self.fused.of(self.model, self._gives_states, self._own_inputs)

    def fuses(self, needs: Needs) -> bool:
        """Whether the fused layers would compute a batch with these needs."""
        return self._fused(needs) is not None

    def fused_layers(self) -> Fused | None:
        """The fused layers; None if the model's own are used."""
        if self.fused is None or self.model.training:
            return None
        with torch.inference_mode():
            return self.fused.of(self.model, self._gives_states, self._own_inputs)

    def fused_products(self) -> str | None:
        """The numbers that the fused layers multiply; None if the model's own layers are used."""
        found = self.fused_layers()
        return None if found is None else found.linear.name

    def _gives_states(self, fused: Fused) -> bool:
        """Whether the fused layers give the states of the model itself, or near ones if asked."""
        draw = np.random.default_rng(0)
        rows = self.model.config.vocab_size
        # Layers of short texts compute those that are alone.
        lengths = PROBED_LENGTHS if fused.short is None else PROBED_LENGTHS[:1]
        texts = [draw.integers(min(5, rows - 1), rows, length) for length in lengths]
        batch = TokenBatch.of_ids(texts)
        inputs = self._own_inputs(batch)
        with texts_of(batch.lengths):
            own_TD = call(self.model, frozenset(), **inputs).last_hidden_state[0]
            if fused.short is None:
                *_, last_TD = fused.states(**inputs)
            else:
                last_TD = self._short_states(fused, batch)
            if (least := fused.linear.least_cosine) is not None:
                return bool(torch.cosine_similarity(last_TD, own_TD).mean() >= least)
            error = (last_TD - own_TD).abs().max()
        return bool(error <= FUSED_TOLERANCE * own_TD.abs().max().clamp(min=1))

    def _own_inputs(self, batch: TokenBatch) -> dict[str, Any]:
        return self.inputs(batch, OWN, frozenset())

    def _short_states(self, fused: Fused, batch: TokenBatch) -> Tensor:
        """The last states of a text by the layers of short ones, [T, D]."""
        places = np.arange(len(batch.ids_T)) if batch.positions_T is None else batch.positions_T
        found: Tensor = fused.short.states(batch.ids_T, places + self.offset, batch.types_T)
        return found

    def inputs(self, batch: TokenBatch, spec: AttentionSpec, needs: Needs) -> dict[str, Any]:
        """Arguments of the model's forward. The plan records the windows that layers ask for."""
        if self.packed and "attentions" not in needs:
            plan = _plan(self.model, batch, spec, runs=tuple(batch.runs()))
            ids = torch.from_numpy(batch.ids_T.astype(np.int64)[None]).to(device_of(self.model))
            positions = plan.positions.to(ids.device)[None]
            types = flat_types(batch, ids.device)
            if batch.positions_T is not None:
                positions = torch.from_numpy(batch.positions_T).to(ids.device)[None]
        else:
            ids, attention_mask_BT = self._padded(batch)
            weights = "attentions" in needs
            plan = _plan(self.model, batch, spec, real_BT=attention_mask_BT, weights=weights)
            positions = plan.positions
            types = padded_types(batch, attention_mask_BT)
            if batch.positions_T is not None:
                positions = flags(batch.positions_T, attention_mask_BT)
        positions = positions + self.offset if self.offset else positions
        return {"input_ids": ids, "position_ids": positions, "plan": plan, **types}

    def to_padded(self, state: Tensor, batch: TokenBatch) -> Tensor:
        if state.shape[0] == len(batch.lengths) and state.ndim == 3 and not self.packed:
            return super().to_padded(state, batch)
        flat_TD = state.reshape(-1, state.shape[-1])
        if len(flat_TD) != len(batch.ids_T):
            return super().to_padded(state, batch)
        shape = len(batch.lengths), max(batch.lengths)
        if len(flat_TD) == shape[0] * shape[1]:
            return flat_TD.view(*shape, -1)
        attention_mask_BT = attention_mask(batch, state.device)
        out = flat_TD.new_zeros(*attention_mask_BT.shape, flat_TD.shape[-1])
        out[attention_mask_BT] = flat_TD
        return out


class Hooked(Native):
    """Padded, with a dense mask passed to every layer."""

    name = "hooks"

    def __init__(self, model: PreTrainedModel, pad_id: int, form: str) -> None:
        super().__init__(model, pad_id)
        self.form = form
        set_attention(model, "eager")
        open_buffers(model)
        install(model)

    def of(self, model: PreTrainedModel) -> Native:
        return Hooked(model, self.pad_id, self.form)

    def run(self, batch: TokenBatch, spec: AttentionSpec, needs: Needs) -> Any:
        self._check_positions(batch)
        ids_BT, attention_mask_BT = self._padded(batch)
        plan = _plan(self.model, batch, spec, real_BT=attention_mask_BT)
        change = LayerMasks(self.model, plan, self.form)
        types = padded_types(batch, attention_mask_BT)
        with texts_of(batch.lengths), changing(self.model, change):
            return call(self.model, needs, input_ids=ids_BT, **types)


def call(model: PreTrainedModel, needs: Needs, **inputs: Any) -> Any:
    """The model's forward, with the arguments that its side outputs need."""
    takes = inspect.signature(model.forward).parameters
    body: Any = model
    if "token_type_ids" not in takes:  # a tokenizer may give them to a model without such a table
        inputs.pop("token_type_ids", None)
    if "decoder_start" in needs:
        start = getattr(model.config, "decoder_start_token_id", None)
        if "decoder_input_ids" not in takes or start is None:
            raise ModelError(f"{type(model).__name__} has no decoder to start")
        rows = len(inputs["input_ids"])
        inputs["decoder_input_ids"] = torch.full((rows, 1), start, device=model.device)
    elif "decoder_input_ids" in takes:
        body = model.get_encoder()
    if "use_cache" in takes and body is model:
        inputs["use_cache"] = False  # nothing reads the cache
    if needs & {"router", "router_logits"}:
        inputs["output_router_logits"] = True
    if "attentions" in needs:
        inputs["output_attentions"] = True
    if "all_layers" in needs:
        inputs["output_hidden_states"] = True
    with evaluated(model):
        return body(**inputs)


def fused_states(fused: Fused, inputs: dict[str, Any], needs: Needs) -> SimpleNamespace:
    """The output of the fused layers, in which texts of NaN and infinity are alone."""
    found = fused_output(fused.states(**inputs), needs)
    plan, hides_nan = inputs["plan"], fused.linear.hides_nan
    several = sum(count for count, _ in plan.runs) > 1
    if not (several or hides_nan) or math.isfinite(found.last_hidden_state.sum()):
        return found
    if several:  # they come to the text before them by the rows that attention reads and hides
        del found
        inputs = {**inputs, "plan": dataclasses.replace(plan, apart=True)}
        found = fused_output(fused.states(**inputs), needs)
    if hides_nan:
        for state_1TD in found.hidden_states or (found.last_hidden_state,):
            _spread_nan(state_1TD[0], plan.runs)
    return found


def _spread_nan(states_TD: Tensor, runs: Iterable[tuple[int, int]]) -> None:
    """All states of a text with one that is not finite become NaN."""
    start = 0
    for count, length in runs:
        states_BTD = states_TD[start : start + count * length].unflatten(0, (count, length))
        states_BTD[~states_BTD.isfinite().flatten(1).all(dim=1)] = torch.nan
        start += count * length


def fused_output(states: Iterable[Tensor], needs: Needs) -> SimpleNamespace:
    """The output of a model with these states, [T, D] each, of the embeddings and every layer."""
    if "all_layers" not in needs:
        states = deque(states, maxlen=1)  # memory of the others is free at once
    found = [state_TD[None] for state_TD in states]
    layers = tuple(found) if "all_layers" in needs else None
    return SimpleNamespace(last_hidden_state=found[-1], hidden_states=layers)


def set_attention(model: PreTrainedModel, name: str) -> bool:
    """Switch a model's attention function; False if the model does not support it."""
    register()
    with quiet_transformers(), contextlib.suppress(ValueError):
        model.set_attn_implementation(name)
    return bool(model.config._attn_implementation == name)


def attention_mask(batch: TokenBatch, device: torch.device) -> Tensor:
    """Which positions of the padded batch are tokens, [B, T]."""
    shape = len(batch.lengths), max(batch.lengths)
    if len(batch.ids_T) == shape[0] * shape[1]:
        return torch.ones(shape, dtype=torch.bool, device=device)
    lengths_B = torch.tensor(batch.lengths, device=device)
    return torch.arange(shape[1], device=device)[None] < lengths_B[:, None]


def flat_types(batch: TokenBatch, device: torch.device) -> dict[str, Tensor]:
    """The token types of a packed batch, [1, T], as an argument; nothing where all are zero."""
    if batch.types_T is None:
        return {}
    return {"token_type_ids": torch.from_numpy(batch.types_T).to(device, torch.long)[None]}


def padded_types(batch: TokenBatch, attention_mask_BT: Tensor) -> dict[str, Tensor]:
    """As `flat_types`, of a padded batch, [B, T]."""
    if batch.types_T is None:
        return {}
    return {"token_type_ids": flags(batch.types_T.astype(np.int64), attention_mask_BT)}


def flags(values_T: np.ndarray, attention_mask_BT: Tensor) -> Tensor:
    """A value of each token as [B, T], zero where there is padding."""
    values = torch.from_numpy(values_T).to(attention_mask_BT.device)
    if values.numel() == attention_mask_BT.numel():
        return values.view_as(attention_mask_BT)
    return torch.zeros_like(attention_mask_BT, dtype=values.dtype).masked_scatter(
        attention_mask_BT, values
    )


def device_of(model: Any) -> torch.device:
    """The device of the first weight, in a fifth of the time of `next(model.parameters())`."""
    if not isinstance(model, nn.Module):  # of outline.py
        return model.device
    modules = [model]
    for module in modules:  # grows meanwhile
        for weight in module._parameters.values():
            if weight is not None:
                return weight.device
        modules += [each for each in module._modules.values() if each is not None]
    raise ModelError(f"{type(model).__name__} has no weights")


def num_layers(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def _plan(
    model: PreTrainedModel, batch: TokenBatch, spec: AttentionSpec, **batched: Any
) -> AttentionPlan:
    """The plan of a batch that is packed (`runs`) or padded (`real_BT`)."""
    segments = None
    if spec.blocked:
        real_BT = batched.get("real_BT")
        segments = torch.from_numpy(batch.segments_T)
        segments = segments if real_BT is None else flags(batch.segments_T, real_BT)
    prefix = _prefix_lengths(batch) if spec.kind == "prefix" else None
    modes = spec.modes(num_layers(model))
    return AttentionPlan(modes, prefix=prefix, segments=segments, blocked=spec.blocked, **batched)


def _prefix_lengths(batch: TokenBatch) -> Tensor:
    """Tokens of each text before its first of a later segment than 0."""
    ends = np.cumsum(batch.lengths)
    texts = np.split(batch.segments_T, ends[:-1])
    return torch.tensor([int(np.argmax(t > 0)) if (t > 0).any() else len(t) for t in texts])
