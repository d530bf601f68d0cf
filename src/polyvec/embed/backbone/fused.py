"""Layers on the CPU in fewer and faster steps: products with weights in a layout of their own.

BERT's family and Llama's, packed, in inference mode. Query, key and value are one matrix product,
and what follows a product is computed with it.

T tokens of all texts, R rows: those and some of zeros, D state size, H heads, S size of a head.
"""

from __future__ import annotations

import functools
import itertools
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from polyvec.embed.backbone.attention import AttentionPlan, plan_attention
from polyvec.embed.backbone.hooks import LayerHook, unchanged_layers
from polyvec.embed.backbone.linears import (
    ACTIVATIONS,
    Activation,
    Linear,
    UnsuitedError,
    exact_linears,
)
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import MissingExtraError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The layout is a second copy of the weights.
MOST_BYTES = 1_500_000_000
BLOCK = 256  # tokens
MULTIPLES = ((32, 4), (BLOCK, 8), (float("inf"), 32))  # of rows, up to so many tokens
RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm")
SAMPLE = 8  # numbers of each matrix; each is a read of cold memory


def num_rows(tokens: int, spare: int) -> int:
    """Rows that hold the tokens and at least `spare` more, so that these numbers are few.

    oneDNN compiles a product for each number of rows that it meets, which takes half a
    millisecond or more, and keeps a thousand of them, most of a gigabyte.
    """
    kept = tokens + spare
    return kept + -kept % next(rows for most, rows in MULTIPLES if kept <= most)


def with_rows(x_TD: Tensor, rows: int) -> Tensor:
    """The numbers with rows of zeros behind them."""
    missing = rows - x_TD.shape[0]
    return F.pad(x_TD, (0, 0, 0, missing)) if missing else x_TD


def in_blocks(
    step: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    size: int,
    states_TD: Tensor,
    x_RD: Tensor,
) -> Tensor:
    """A step of tokens alone, for `size` of them at a time: its numbers stay in the cache.

    `step(states, x, out)` writes into `out`, if it is given one. Behind the states are rows of
    zeros, as many as x has more.
    """
    rows = x_RD.shape[0]
    if rows <= size:
        return step(with_rows(states_TD, rows), x_RD, None)
    out_RD = torch.empty_like(x_RD)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        part_RD = out_RD[part]
        step(with_rows(states_TD[part], part_RD.shape[0]), x_RD[part], part_RD)
    return out_RD


class BertLayer:
    """One layer of BERT, RoBERTa or XLM-R: norms follow the residual sums."""

    block = BLOCK

    def __init__(self, layer: Any, activation: Activation, linear: type[Linear]) -> None:
        attention = layer.attention.self
        self.attention, self.activation = attention, activation
        self.size: int = attention.attention_head_size
        self.qkv = linear(attention.query, attention.key, attention.value)
        self.out = linear(layer.attention.output.dense)
        self.up, self.down = linear(layer.intermediate.dense), linear(layer.output.dense)
        self.norms = _norm(layer.attention.output.LayerNorm), _norm(layer.output.LayerNorm)

    def __call__(self, x_RD: Tensor, plan: AttentionPlan, tokens: int) -> Tensor:
        qkv_RD = self.qkv(x_RD)
        if plan.apart:
            qkv_RD = qkv_RD[:tokens]
        qkv_1RHS = qkv_RD.view(1, qkv_RD.shape[0], -1, self.size)
        query, key, value = qkv_1RHS.transpose(1, 2).chunk(3, dim=1)
        asked = self.attention, query[:, :, :tokens], key, value, None
        states, _ = plan_attention(*asked, plan=plan, in_lanes=not plan.apart)
        sum_RD = in_blocks(self._after, self.block, states.reshape(tokens, -1), x_RD)
        return torch.layer_norm(sum_RD, *self.norms[1])

    def _after(self, states_TD: Tensor, x_TD: Tensor, out: Tensor | None) -> Tensor:
        """What follows attention, up to the last norm."""
        sum_TD = self.out.with_other("add", states_TD, x_TD)
        x_TD = torch.layer_norm(sum_TD, *self.norms[0])
        return self.down.with_other("add", self.up(x_TD, self.activation), x_TD, out)


class Bert:
    """BERT, RoBERTa and XLM-R."""

    short: Any = None  # onnx_layers.ShortTexts, where asked for

    def __init__(self, model: Any, linear: type[Linear]) -> None:
        activation, tables = _activation(model), model.embeddings
        self.model = model
        self.linear: Any = linear
        self.layers = [BertLayer(each, activation, linear) for each in model.encoder.layer]
        self.words: Tensor = tables.word_embeddings.weight
        self.types: Tensor = tables.token_type_embeddings.weight
        self.places: Tensor = tables.position_embeddings.weight
        self.norm = _norm(tables.LayerNorm)

    def states(
        self,
        plan: AttentionPlan,
        input_ids: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """The embeddings and the states after each layer, [T, D]."""
        types_TD = self.types[:1] if token_type_ids is None else self.types[token_type_ids[0]]
        words_TD = F.embedding(input_ids[0], self.words)
        sum_TD = words_TD + types_TD + F.embedding(position_ids[0], self.places)
        x_TD = torch.layer_norm(sum_TD, *self.norm)
        yield x_TD
        tokens = x_TD.shape[0]
        x_RD = with_rows(x_TD, num_rows(tokens, plan.spare()))
        for layer in self.layers:
            x_RD = layer(x_RD, plan, tokens)
            yield x_RD[:tokens]


Norm = tuple[tuple[int, ...], Tensor, Tensor, float]


def _norm(module: Any) -> Norm:
    """Arguments of torch.layer_norm; the call of a module takes as long as a small norm."""
    if isinstance(module, tuple):  # of outline.py
        return module
    if type(module) is not nn.LayerNorm:
        raise UnsuitedError(type(module).__name__)
    return module.normalized_shape, module.weight, module.bias, module.eps


def rms_norm(weight: Tensor, eps: float, x_TD: Tensor) -> Tensor:
    """x divided by the root of its mean square, times the weight: in half of the model's passes."""
    scale_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True).square_()
    scale_T1 = scale_T1.mul_(1 / x_TD.shape[-1]).add_(eps).rsqrt_()
    return (x_TD * scale_T1).mul_(weight)


def _rms(module: Any) -> Callable[[Tensor], Tensor]:
    """A norm of transformers in fewer passes; other callables as they are."""
    if type(module).__name__ in RMS_NORMS and module.weight.dtype == torch.float32:
        return functools.partial(rms_norm, module.weight, module.variance_epsilon)
    norm: Callable[[Tensor], Tensor] = module
    return norm


class LlamaLayer:
    """One layer of Llama, Mistral or Qwen2: norms before each part, gated products."""

    def __init__(self, layer: Any, activation: Activation, linear: type[Linear]) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attention, self.activation, self.size = attention, activation, attention.head_dim
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        self.heads = [part.out_features // self.size for part in parts]
        self.qkv = linear(*parts, order=self._pairs())
        self.out = linear(attention.o_proj)
        self.gate, self.up, self.down = map(linear, (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        self.norms = _rms(layer.input_layernorm), _rms(layer.post_attention_layernorm)

    def _pairs(self) -> Tensor:
        """Outputs in an order in which those that are turned together are neighbours.

        Then the rotation is one product of complex numbers. Scores do not change, as queries
        and keys have the same order.
        """
        *turned, kept = self.heads
        pairs_S = torch.arange(self.size).view(2, -1).T.flatten()
        starts_H1 = torch.arange(sum(turned))[:, None] * self.size
        last = torch.arange(kept * self.size) + sum(turned) * self.size
        return torch.cat([(starts_H1 + pairs_S).flatten(), last])

    def __call__(self, x_RD: Tensor, turns_R1S: Tensor, plan: AttentionPlan, tokens: int) -> Tensor:
        qkv_RHS = self.qkv(self.norms[0](x_RD)).view(len(x_RD), -1, self.size)
        *turned, kept = self.heads
        pairs = torch.view_as_complex(qkv_RHS[:, : sum(turned)].unflatten(-1, (-1, 2)))
        both_RHS = torch.view_as_real(pairs * turns_R1S).flatten(-2)
        if plan.apart:
            both_RHS, qkv_RHS = both_RHS[:tokens], qkv_RHS[:tokens]
        query, key = both_RHS.transpose(0, 1)[None].split(turned, dim=1)
        value = qkv_RHS[:, -kept:].transpose(0, 1)[None]
        states, _ = plan_attention(
            self.attention, query[:, :, :tokens], key, value, None,
            scaling=self.attention.scaling, plan=plan, in_lanes=not plan.apart,
        )  # fmt: skip
        return in_blocks(self._after, BLOCK, states.reshape(tokens, -1), x_RD)

    def _after(self, states_TD: Tensor, x_TD: Tensor, out: Tensor | None) -> Tensor:
        x_TD = self.out.with_other("add", states_TD, x_TD)
        inner_TD = self.norms[1](x_TD)
        gate = self.gate(inner_TD, self.activation)
        return self.down.with_other("add", self.up.with_other("mul", inner_TD, gate), x_TD, out)


class Llama:
    """Llama, Mistral and Qwen2 without windows."""

    short: Any = None

    def __init__(self, model: Any, linear: type[Linear]) -> None:
        if getattr(model.config, "sliding_window", None) is not None:
            raise UnsuitedError("window")
        activation = _activation(model)
        self.model = model
        self.linear: Any = linear
        self.layers = [LlamaLayer(each, activation, linear) for each in model.layers]
        self.norm = _rms(model.norm)

    def states(
        self, plan: AttentionPlan, input_ids: Tensor, position_ids: Tensor
    ) -> Iterator[Tensor]:
        """The embeddings and the states after each layer, [T, D]; the last are normalised."""
        x_TD: Tensor = self.model.embed_tokens(input_ids)[0]
        cos, sin = self.model.rotary_emb(x_TD[None], position_ids=position_ids)
        half = cos.shape[-1] // 2
        turns_T1S = torch.complex(cos[0, :, :half], sin[0, :, :half])[:, None]
        tokens = len(x_TD)
        x_RD = with_rows(x_TD, num_rows(tokens, plan.spare()))
        missing = len(x_RD) - tokens
        turns_R1S = torch.cat([turns_T1S, turns_T1S.new_zeros(missing, 1, half)])
        for layer in self.layers:
            yield x_RD[:tokens]
            x_RD = layer(x_RD, turns_R1S, plan, tokens)
        yield self.norm(x_RD[:tokens])


Fused = Bert | Llama
Inputs = Callable[[TokenBatch], dict[str, Any]]  # of `states`, for a batch
FAMILIES: dict[str, type[Fused]] = {
    **dict.fromkeys(("BertModel", "RobertaModel", "XLMRobertaModel"), Bert),
    **dict.fromkeys(("LlamaModel", "MistralModel", "Qwen2Model"), Llama),
}


def _activation(model: Any) -> Activation:
    name = model.config.hidden_act
    if name not in ACTIVATIONS:
        raise UnsuitedError(f"activation {name}")
    return ACTIVATIONS[name]


class FusedModel:
    """The fused layers of a model, made at the first batch, and again after a change of weights.

    They are used only if they give the model's own states. Threads may share one. Copies make
    their own: the layout of the weights cannot be copied.

    linears: gives the kinds of products that are tried, the best first; else those of float32.
        A kind with a method `layers` (static.StaticInt8) makes the layers itself.
    short: makes of the layers those of short texts (onnx_layers.ShortTexts).
    """

    def __init__(
        self,
        linears: Callable[[], Sequence[Any]] | None = None,
        short: Callable[[Fused], Any] | None = None,
    ) -> None:
        self.linears, self.short = linears, short
        self._made: tuple[Stamp, Fused | None] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return FusedModel, (self.linears, self.short)

    @property
    def accepted(self) -> bool:
        """Whether a batch has been computed with the layers, and so they were checked."""
        return self._made is not None and self._made[1] is not None

    def drop(self) -> None:
        """Forget the layers, before the weights are trained."""
        self._made = None

    def of(
        self, model: PreTrainedModel, check: Callable[[Fused], bool], inputs: Inputs
    ) -> Fused | None:
        """The layers, if the model has such and `check` accepts them."""
        if not _may_be_fused(model):
            return None
        made = self._made
        if made is None or not _hold(*made):
            with self._lock:
                made = self._made
                if made is None or not _hold(*made):
                    # A query does not wait for what is as the stamp says: device and type.
                    if model.device.type != "cpu" or model.dtype != torch.float32:
                        self._made = None
                        return None
                    kinds = (self.linears or exact_linears)()
                    # Before the layers: what changes while they are made is seen later.
                    products, every = Stamp(model), Stamp(model, every=True)
                    found = self._first(kinds, model, check, inputs)
                    sampled = found is not None and hasattr(found.linear, "layers")
                    made = self._made = every if sampled else products, found
        return made[1]

    def _first(
        self,
        kinds: Sequence[Any],
        model: PreTrainedModel,
        check: Callable[[Fused], bool],
        inputs: Inputs,
    ) -> Fused | None:
        for kind in kinds:
            found = _fused(model, check, inputs, kind, self.short)
            if found is not None:
                return found
        return None


def _hold(stamp: Stamp, fused: Fused | None) -> bool:
    """Whether the layers are still those of the model."""
    short = None if fused is None else fused.short
    return stamp.holds() and (short is None or short.holds())


def _may_be_fused(model: PreTrainedModel) -> bool:
    """What is quick to see at each batch."""
    return (
        type(model).__name__ in FAMILIES
        # Not in passes without gradients of a training step, whose weights are new each time.
        and torch.is_inference_mode_enabled()
        and not model.training
        and unchanged_layers()
        and not torch.is_autocast_enabled("cpu")
    )


def _fused(
    model: PreTrainedModel,
    check: Callable[[Fused], bool],
    inputs: Inputs,
    kind: Any,
    short: Callable[[Fused], Any] | None,
) -> Fused | None:
    of_transformers = type(model).__module__.startswith("transformers.models.")
    sizes = sum(each.numel() for each in model.parameters()) * kind.bytes
    known_processor = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    if not (of_transformers and known_processor and torch.backends.mkldnn.is_available()):
        return None
    if sizes > MOST_BYTES or any(True for module in model.modules() if _is_hooked(module)):
        return None
    try:
        makes = getattr(kind, "layers", None)
        found: Fused = (
            makes(model, inputs) if makes else FAMILIES[type(model).__name__](model, kind)
        )
        if not check(found):
            return None
        found.short = None if short is None else _checked(short, found, check)
        return found
    # The products are not torch's public interface: another version may lack or change them. A
    # table that became smaller may lack an id or a position of a sample.
    except (UnsuitedError, AttributeError, RuntimeError, TypeError, IndexError):
        return None


def _checked(short: Callable[[Fused], Any], fused: Fused, check: Callable[[Fused], bool]) -> Any:
    """The layers of short texts; None if there are none for the model, or with other states."""
    try:
        fused.short = short(fused)
        return fused.short if check(fused) else None
    # As in _fused: norms may lack parts, and a package may be of another version.
    except (UnsuitedError, MissingExtraError, AttributeError, RuntimeError, TypeError):
        return None
    finally:
        fused.short = None


def _is_hooked(module: nn.Module) -> bool:
    """Whether a caller's hook would not be called; ours and transformers' do nothing here."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    known = "transformers.utils.output_capturing"
    return any(
        not isinstance(hook, LayerHook) and getattr(hook, "__module__", "") != known
        for hook in hooks
    )


class Stamp:
    """The parts of a model and the weights of its products as they are now.

    Fused layers have copies of those; they read other weights as they are. `.data` edits change
    no version counter, so a sample of each matrix is compared, too: merged adapters are edited so.

    every: all weights, as levels that were found on a sample depend on norms and tables, too.
    """

    def __init__(self, model: PreTrainedModel, *, every: bool = False) -> None:
        modules = list(model.modules())
        tables = [table for m in modules for table in (m._modules, m._parameters)]
        self._tables = [table for table in tables if table]
        self._parts = [part for table in self._tables for part in table.values()]
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._num_hooks = sum(map(len, self._hooks))
        self._newest_hook = RemovableHandle.next_id
        watched = [module for module in modules if every or isinstance(module, nn.Linear)]
        weights = [weight for each in watched for weight in each.parameters(recurse=False)]
        self._uncounted = [weight for weight in weights if weight.is_inference()]
        self._counted = [weight for weight in weights if not weight.is_inference()]
        self._places = self._where()
        flat = [
            weight.detach().view(-1)
            for weight in weights
            if weight.ndim > (0 if every else 1)
            # numpy has no bfloat16; a view of some columns has no flat one
            and weight.dtype == torch.float32
            and weight.is_contiguous()
        ]
        # Views; numpy joins those in a fifth of torch's time.
        self._samples = [w[:: max(1, len(w) // SAMPLE)].numpy() for w in flat]
        self._values = self._sampled()

    def holds(self) -> bool:
        """Whether the model still is what it was."""
        return (
            all(itertools.starmap(operator.is_, itertools.zip_longest(self._now(), self._parts)))
            and self._same_hooks()
            and self._where() == self._places
            and self._sampled() == self._values
        )

    def _now(self) -> Iterator[Any]:
        return itertools.chain.from_iterable([table.values() for table in self._tables])

    def _sampled(self) -> bytes:
        return np.concatenate(self._samples).tobytes() if self._samples else b""

    def _where(self) -> list[tuple[int, int]]:
        uncounted = [(weight.data_ptr(), 0) for weight in self._uncounted]
        return [(weight.data_ptr(), weight._version) for weight in self._counted] + uncounted

    def _same_hooks(self) -> bool:
        # Where there were none, new ones can only be added, and hooks are numbered.
        if not self._num_hooks and RemovableHandle.next_id == self._newest_hook:
            return True
        return sum(map(len, self._hooks)) == self._num_hooks
