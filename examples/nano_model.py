"""The models of polyvec-nano, their losses and optimizers: what pretrain_nano.py trains.

Shapes: B rows, T tokens, D states, V vocabulary, N tokens in a chunk of rows, R and C a matrix's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

PAD, BOS, EOS, MASK = "<pad>", "<s>", "</s>", "<mask>"
SENTINELS = [f"<extra_id_{i}>" for i in range(32)]
PAD_ID, BOS_ID, EOS_ID, FIRST_SENTINEL_ID = 0, 1, 2, 4
CONTEXT = 512


@dataclass(frozen=True)
class Preset:
    """Sizes and the budget of one kind of machine."""

    vocabulary: int = 8192
    hidden: int = 192
    layers: int = 6
    feed_forward: int = 512
    heads: int = 6
    key_value_heads: int = 2
    t5_layers: int = 3
    t5_feed_forward: int = 384
    rows_tokens: int = 4096  # tokens of one optimizer step
    micro_tokens: int = 2048  # tokens of one forward and backward: what the cache holds
    context: int = 256  # while the rate is stable; CONTEXT while it decays
    matrix_rate: float = 0.02
    vector_rate: float = 4e-3
    warmup: int = 60
    decay: float = 0.3  # the last part of the steps, linearly to nothing
    epochs: float = 1.0
    check_every: int = 250
    caps: bool = True  # take no more of a source than its cap
    device: str = "cpu"
    compiled: bool = True


PRESETS = {
    "cpu": Preset(),
    "gpu": Preset(
        hidden=256, layers=5, feed_forward=704, heads=8, key_value_heads=4, t5_layers=2,
        t5_feed_forward=320, rows_tokens=65536, micro_tokens=65536, context=512, epochs=12,
        caps=False, device="cuda", warmup=100,
    ),
    "smoke": Preset(
        vocabulary=512, hidden=32, layers=2, feed_forward=64, heads=2, key_value_heads=1,
        t5_layers=1, t5_feed_forward=48, rows_tokens=1024, micro_tokens=1024, context=64,
        warmup=4, check_every=10, epochs=0.5, compiled=False,
    ),
}  # fmt: skip


# ---- processes ----------------------------------------------------------------------------------


def place() -> tuple[int, int]:
    """Rank and number of the processes that train together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, in place; the same bits in each."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


# ---- models and losses --------------------------------------------------------------------------


def llama(preset: Preset, vocabulary: int) -> LlamaForCausalLM:
    """A causal model whose blocks begin as the identity (output projections are zero)."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=preset.hidden, num_hidden_layers=preset.layers,
        intermediate_size=preset.feed_forward, num_attention_heads=preset.heads,
        num_key_value_heads=preset.key_value_heads, max_position_embeddings=CONTEXT,
        tie_word_embeddings=True, bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def t5(preset: Preset, vocabulary: int) -> T5ForConditionalGeneration:
    """T5 1.1 (gated GELU), with tied embeddings so that more of its size is layers."""
    config = T5Config(
        vocab_size=vocabulary, d_model=preset.hidden, d_kv=preset.hidden // preset.heads,
        d_ff=preset.t5_feed_forward, num_heads=preset.heads, num_layers=preset.t5_layers,
        num_decoder_layers=max(1, preset.t5_layers - 1), feed_forward_proj="gated-gelu",
        dropout_rate=0.0, tie_word_embeddings=True, pad_token_id=PAD_ID, eos_token_id=EOS_ID,
        decoder_start_token_id=PAD_ID,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def experts(model: LlamaForCausalLM, seed: int) -> MixtralForCausalLM:
    """The mixture-of-experts twin: each feed-forward four times, two of them used for a token.

    The router's weights sum to one, so the twin of equal experts would compute what the model
    does; 2 % of noise makes them differ, or their router would have no gradient.
    """
    torch.manual_seed(seed)
    old = model.config
    config = MixtralConfig(
        vocab_size=old.vocab_size, hidden_size=old.hidden_size,
        intermediate_size=old.intermediate_size, num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads, num_key_value_heads=old.num_key_value_heads,
        num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, rms_norm_eps=old.rms_norm_eps,
        rope_parameters=old.rope_parameters, bos_token_id=BOS_ID, eos_token_id=EOS_ID,
        pad_token_id=PAD_ID, sliding_window=None,
    )  # fmt: skip
    twin = MixtralForCausalLM(config)
    twin.load_state_dict(model.state_dict(), strict=False)
    for old_layer, layer in zip(model.model.layers, twin.model.layers, strict=True):
        gate_up = torch.cat([old_layer.mlp.gate_proj.weight, old_layer.mlp.up_proj.weight])
        copied = {"gate_up_proj": gate_up, "down_proj": old_layer.mlp.down_proj.weight}
        for new, weight in copied.items():
            target = getattr(layer.mlp.experts, new)
            noise = torch.randn_like(target) * weight.std() * 0.02
            target.data.copy_(weight.data.expand_as(target) + noise)
    return twin


def spectral_embedding(documents: list[np.ndarray], vocabulary: int, hidden: int) -> Tensor:
    """Word vectors of the whole corpus before the first step, [V, D], with spread 0.02.

    The leading singular vectors of the positive pointwise mutual information of tokens at most
    four apart (Levy and Goldberg 2014): the run reads each text once, this reads it for seconds.
    """
    tokens = np.concatenate(documents).astype(np.int64)
    counts = np.zeros(vocabulary * vocabulary, dtype=np.float32)
    for gap in range(1, 5):
        pairs = tokens[:-gap] * vocabulary + tokens[gap:]
        counts += np.bincount(pairs, minlength=len(counts)).astype(np.float32) / gap
    counts_VV = torch.from_numpy(counts.reshape(vocabulary, vocabulary))
    counts_VV = counts_VV + counts_VV.T
    totals_V = counts_VV.sum(1).clamp(min=1)
    information_VV = (
        (counts_VV * counts_VV.sum() / totals_V[:, None] / totals_V).log_().clamp_(min=0)
    )
    left_VD, scale_D, _ = torch.svd_lowrank(information_VV, q=hidden, niter=3)
    vectors_VD = left_VD * scale_D.sqrt()
    return vectors_VD * (0.02 / vectors_VD.std())


class LinearCrossEntropy(torch.autograd.Function):
    """Sum over tokens of -log softmax(h W')[target], with the gradient made on the way.

    Logits of all tokens never exist at once: a chunk's 8 MB stay in the cache, and nothing is
    computed twice. Checked against F.cross_entropy in tests/test_nano.py.
    """

    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, weight_VD: Tensor, target_N: Tensor, chunk: int) -> Tensor:
        weight = weight_VD.to(h_ND.dtype)
        loss = torch.zeros((), device=h_ND.device)
        h_grad, weight_grad = torch.empty_like(h_ND), torch.zeros_like(weight_VD)
        for part in range(0, len(h_ND), chunk):
            h, target = h_ND[part : part + chunk], target_N[part : part + chunk, None]
            logits = (h @ weight.T).float()
            normalizer = logits.logsumexp(1, keepdim=True)
            loss += (normalizer - logits.gather(1, target)).sum()
            slope = logits.sub_(normalizer).exp_()
            slope.scatter_add_(1, target, slope.new_full((len(target), 1), -1.0))
            slope = slope.to(h.dtype)
            h_grad[part : part + chunk] = slope @ weight
            weight_grad += slope.T @ h
        ctx.save_for_backward(h_grad, weight_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        h_grad, weight_grad = ctx.saved_tensors
        return h_grad * grad.to(h_grad.dtype), weight_grad * grad, None, None


def causal_loss(body: Callable[..., Any], head_VD: Tensor, ids_BT: Tensor) -> Tensor:
    """Summed nats of predicting each next token."""
    h_BTD = body(ids_BT[:, :-1])
    chunk = 256 if h_BTD.device.type == "cpu" else 8192
    return LinearCrossEntropy.apply(h_BTD.flatten(0, 1), head_VD, ids_BT[:, 1:].flatten(), chunk)


def corrupt(ids_BT: Tensor, seed: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Inputs with 15 % of the tokens in spans of about 3 behind sentinels, and those spans.

    T5's rule (Raffel et al. 2020, arXiv:1910.10683): every row has as many noise tokens and spans,
    so all rows of a batch are equally long and nothing is padded.
    """
    rng = np.random.default_rng(seed)
    rows, length = ids_BT.shape
    noise = round(length * 0.15)
    spans = max(1, round(noise / 3))
    inputs, targets = [], []
    for row in ids_BT.numpy():
        bounds = np.empty(2 * spans, dtype=np.int64)
        bounds[0::2] = _pieces(rng, length - noise, spans)
        bounds[1::2] = _pieces(rng, noise, spans)
        parts = np.split(row, np.cumsum(bounds)[:-1])
        marks = [np.array([FIRST_SENTINEL_ID + i]) for i in range(spans)]
        inputs.append(np.concatenate([x for i in range(spans) for x in (parts[2 * i], marks[i])]))
        targets.append(
            np.concatenate([x for i in range(spans) for x in (marks[i], parts[2 * i + 1])])
        )
    end = torch.full((rows, 1), EOS_ID)
    inputs_BT, targets_BT = (torch.from_numpy(np.stack(x)) for x in (inputs, targets))
    return torch.cat([inputs_BT, end], 1), torch.cat([targets_BT, end], 1)


def _pieces(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
    """`count` lengths, each at least 1, that sum to `total`."""
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


# ---- optimizer ----------------------------------------------------------------------------------


def orthogonalize(update: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, about: [..., R, C] by five Newton-Schulz steps."""
    x = update if update.shape[-2] <= update.shape[-1] else update.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if update.shape[-2] <= update.shape[-1] else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan 2024): every direction of a matrix learns at one speed.

    torch.optim.Muon works in bfloat16 whatever the weights are, which a CPU pays dearly for.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                shapes.setdefault(weight.shape, []).append(weight)
            for shape, weights in shapes.items():
                updates = torch.stack([self._update(w, group) for w in weights])
                rank, world = place()  # each process orthogonalizes its part
                mine = torch.zeros_like(updates)
                mine[rank::world] = orthogonalize(updates[rank::world])
                updates = summed(mine)
                rate = group["lr"] * max(1.0, shape[-2] / shape[-1]) ** 0.5
                torch._foreach_add_(weights, list(updates.unbind()), alpha=-rate)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
        return weight.grad.lerp(state["momentum"], group["momentum"])  # Nesterov


def optimizers(model: nn.Module, preset: Preset) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks; Adam for embeddings, norms, biases, routers, experts."""
    matrix, other = [], []
    for name, weight in model.named_parameters():
        small = weight.ndim != 2 or any(
            word in name for word in ("embed", "shared", "bias", "router")
        )
        if weight.requires_grad:
            (other if small else matrix).append(weight)
    adam = torch.optim.AdamW(
        other, preset.vector_rate, (0.9, 0.95), 1e-10, weight_decay=0, foreach=True
    )
    found = [Muon(matrix, preset.matrix_rate)] if matrix else []
    for optimizer in (*found, adam):
        for group in optimizer.param_groups:
            group["base"] = group["lr"]
    return [*found, adam]


def rate_at(step: int, total: float, preset: Preset) -> float:
    """Warm-up, stable, decay: linear to nothing over the last part of `total` steps.

    The stable part does not depend on the end, so that a run on a clock may choose it late.
    """
    left = (total - step) / (preset.decay * total) if math.isfinite(total) else 1.0
    return min(1.0, (step + 1) / preset.warmup, left)
