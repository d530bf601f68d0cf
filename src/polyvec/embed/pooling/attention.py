"""Poolings by attention: NV-Embed's latents, LMORT.

B texts, T tokens of the longest, D state size, N latents or vectors, L layers, H heads,
Q queries, S keys.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.embed.backbone.states import States
from polyvec.embed.part import HiddenSize, at_least, one_of, wide
from polyvec.embed.pooling.base import PoolingModule, layer_states, real
from polyvec.embed.pooling.functions import POOLINGS, mean
from polyvec.errors import SettingsError, ShapeError


class Attention(nn.Module):
    """Multi-head attention of queries [B, Q, D] over keys [B, S, D] where `mask_BS`, [B, Q, D].

    Inner width is heads * head_size, no biases. Without `mask_BS` no key is masked.
    """

    def __init__(self, size: int, num_heads: int, head_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_size
        self.to_query = nn.Linear(size, inner, bias=False)
        self.to_key = nn.Linear(size, inner, bias=False)
        self.to_value = nn.Linear(size, inner, bias=False)
        self.to_out = nn.Linear(inner, size, bias=False)

    def forward(
        self, queries_BQD: Tensor, keys_BSD: Tensor, mask_BS: Tensor | None = None
    ) -> Tensor:
        query, key, value = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, x in (
                (self.to_query, queries_BQD),
                (self.to_key, keys_BSD),
                (self.to_value, keys_BSD),
            )
        )
        mask_B11S = None if mask_BS is None else mask_BS.bool()[:, None, None]
        out_BHQd = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B11S)
        return self.to_out(out_BHQd.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """GEGLU feed-forward of four times the width (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.up = nn.Linear(size, 8 * size)  # value and gate, 4 * size each
        self.down = nn.Linear(4 * size, size)

    def forward(self, states: Tensor) -> Tensor:
        value, gate = self.up(states).chunk(2, dim=-1)
        return self.down(value * F.gelu(gate))


class LatentAttention(PoolingModule):
    """Tokens attend to learned latents, then a feed-forward, then the mean, [B, D].

    Both steps have pre-norm and a residual; latents are keys and values (NV-Embed, Lee et al.
    2024, arXiv:2405.17428, whose heads are as wide as the states: `head_size` None).
    With `attention.to_out` and `feed.down` zero it is the mean of the pooled states.
    """

    def __init__(
        self,
        hidden_size: HiddenSize,
        num_latents: int = 512,
        num_heads: int = 8,
        head_size: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, "LatentAttention", num_latents=num_latents, num_heads=num_heads)
        self.hidden_size = self.out_features = hidden_size
        self.num_latents, self.num_heads, self.head_size = num_latents, num_heads, head_size
        self.latents_ND = nn.Parameter(torch.randn(num_latents, hidden_size))
        self.norm_states, self.norm_latents = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.attention = Attention(hidden_size, num_heads, head_size or hidden_size)
        self.norm_feed, self.feed = nn.LayerNorm(hidden_size), GatedFeedForward(hidden_size)

    def vectors(self, states: States) -> Tensor:
        # Tokens do not attend to each other, so the pooled ones are computed as one sequence.
        pooling_mask_BT = states.pooling_mask_BT.bool()
        tokens_1TD = wide(states.last_BTD[pooling_mask_BT])[None]
        keys_1ND = self.norm_latents(self.latents_ND)[None]
        tokens_1TD = tokens_1TD + self.attention(self.norm_states(tokens_1TD), keys_1ND)
        tokens_1TD = tokens_1TD + self.feed(self.norm_feed(tokens_1TD))
        # index_put, not assignment in place: gradients flow through it.
        empty_BTD = tokens_1TD.new_zeros(states.last_BTD.shape)
        return mean(empty_BTD.index_put((pooling_mask_BT,), tokens_1TD[0]), pooling_mask_BT)


class LMORT(PoolingModule):
    """Small bidirectional blocks on two layers of a frozen model, then mean or last, [B, D].

    Each block: self-attention over one layer's states (`stream`, "uniform" or "align"),
    attention to the other layer's, feed-forward; pre-norm, residuals. Only these weights are
    trained, so the model still generates as before (Sun et al. 2024, arXiv:2403.01999).
    `select_layers` finds the two layers; 0 is the word embeddings.
    """

    needs = frozenset({"all_layers"})

    def __init__(
        self,
        hidden_size: HiddenSize,
        align_layer: int,
        uniform_layer: int,
        num_blocks: int = 2,
        num_heads: int = 8,
        pooling: str = "mean",
        stream: str = "uniform",
    ) -> None:
        super().__init__()
        at_least(1, "LMORT", num_blocks=num_blocks, num_heads=num_heads)
        one_of("LMORT: pooling", pooling, ("mean", "last"))
        one_of("LMORT: stream", stream, ("uniform", "align"))
        self.hidden_size = self.out_features = hidden_size
        self.align_layer, self.uniform_layer = align_layer, uniform_layer
        self.num_blocks, self.num_heads = num_blocks, num_heads
        self.pooling, self.stream = pooling, stream
        self.blocks = nn.ModuleList(_LMORTBlock(hidden_size, num_heads) for _ in range(num_blocks))
        self.norm_out = nn.LayerNorm(hidden_size)

    @property
    def chosen_layers(self) -> tuple[int, ...]:
        return (self.align_layer, self.uniform_layer)

    def vectors(self, states: States) -> Tensor:
        aligned, uniform = (
            real(layer_states(states, layer, "LMORT"), states.attention_mask_BT)
            for layer in (self.align_layer, self.uniform_layer)
        )
        stream, other = (uniform, aligned) if self.stream == "uniform" else (aligned, uniform)
        for block in self.blocks:
            stream = block(stream, other, states.attention_mask_BT)
        return POOLINGS[self.pooling](self.norm_out(stream), states.pooling_mask_BT)


class _LMORTBlock(nn.Module):
    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        head_size = _head_size("LMORT", size, num_heads)
        self.norm_self = nn.LayerNorm(size)
        self.self_attention = Attention(size, num_heads, head_size)
        self.norm_stream, self.norm_other = nn.LayerNorm(size), nn.LayerNorm(size)
        self.cross_attention = Attention(size, num_heads, head_size)
        self.norm_feed, self.feed = nn.LayerNorm(size), GatedFeedForward(size)

    def forward(self, stream_BTD: Tensor, other_BTD: Tensor, attention_mask_BT: Tensor) -> Tensor:
        normed_BTD = self.norm_self(stream_BTD)
        stream_BTD = stream_BTD + self.self_attention(normed_BTD, normed_BTD, attention_mask_BT)
        normed_BTD, keys_BTD = self.norm_stream(stream_BTD), self.norm_other(other_BTD)
        stream_BTD = stream_BTD + self.cross_attention(normed_BTD, keys_BTD, attention_mask_BT)
        return stream_BTD + self.feed(self.norm_feed(stream_BTD))


def alignment(vectors_ND: Tensor, positives_ND: Tensor) -> Tensor:
    """Mean squared distance of unit vectors to their positives; lower is better.

    Wang and Isola 2020, arXiv:2005.10242.
    """
    a_ND, b_ND = (F.normalize(wide(x), dim=-1) for x in (vectors_ND, positives_ND))
    return (a_ND - b_ND).square().sum(dim=-1).mean()


def uniformity(vectors_ND: Tensor) -> Tensor:
    """Log of the mean of exp(-2 * squared distance) over pairs of unit vectors; lower is better.

    0 if all vectors are equal (Wang and Isola 2020, arXiv:2005.10242).
    """
    distances = torch.pdist(F.normalize(wide(vectors_ND), dim=-1))
    return torch.logsumexp(-2 * distances.square(), dim=0) - math.log(len(distances))


@torch.no_grad()
def select_layers(layers_LND: Tensor, positives_LND: Tensor) -> tuple[int, int]:
    """The layer with the best alignment and the layer with the best uniformity, by index.

    Row n of every layer of `positives_LND` holds the positive of row n of `layers_LND`.
    Uniformity is over the first alone, since a text and its positive should be close.
    Raises ShapeError if shapes differ or there are fewer than 2 texts.
    """
    if layers_LND.shape != positives_LND.shape or layers_LND.ndim != 3 or layers_LND.shape[1] < 2:
        raise ShapeError(
            "select_layers: expected two arrays [layers, 2 or more texts, size], got "
            f"{tuple(layers_LND.shape)} and {tuple(positives_LND.shape)}"
        )
    aligned = [alignment(a, b) for a, b in zip(layers_LND, positives_LND, strict=True)]
    uniform = [uniformity(a) for a in layers_LND]
    return int(torch.stack(aligned).argmin()), int(torch.stack(uniform).argmin())


def _head_size(where: str, hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise SettingsError(
            f"{where}: hidden size {hidden_size} is not divisible by {num_heads} heads"
        )
    return hidden_size // num_heads
