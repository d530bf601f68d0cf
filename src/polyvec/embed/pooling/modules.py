"""Poolings with weights or settings, by name."""

import inspect

import torch
from torch import Tensor, nn

from polyvec.embed.pooling.attention import LMORT, LatentAttention
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.introspector import Introspector
from polyvec.embed.pooling.layers import (
    LayerChoice,
    LayerConcat,
    MaskToken,
    ReBA,
    RouterWeights,
    SpecialMean,
)
from polyvec.embed.pooling.lexical import Lexical
from polyvec.embed.pooling.side import DecoderStart, Generated
from polyvec.embed.pooling.token_weights import TokenWeights
from polyvec.embed.pooling.trainable import TrainablePooling
from polyvec.registry import Registry

# Add yours here; tests walk the table. A program adds its own with `register`.
POOLING_MODULES: Registry[type[PoolingModule]] = Registry(
    "pooling",
    {
        "latent_attn": LatentAttention,
        "trainable": TrainablePooling,
        "lmort": LMORT,
        "introspector": Introspector,
        "route_weights": RouterWeights,
        "reba": ReBA,
        "lexical": Lexical,
        "token_weights": TokenWeights,
        "mask_token": MaskToken,
        "special_mean": SpecialMean,
        "layer": LayerChoice,
        "layer_concat": LayerConcat,
        "decoder_start": DecoderStart,
        "generated": Generated,
    },
    accepts=lambda found: inspect.isclass(found) and issubclass(found, PoolingModule),
    expected="a subclass of PoolingModule",
)


class WeightedLayers(nn.Module):
    """Weighted mean over layers, token by token: sentence-transformers' WeightedLayerPooling.

    Takes the states of the word embeddings and of all layers, each [B, T, D], and returns
    [B, T, D]; layers below `layer_start` are not used.
    """

    def __init__(self, num_hidden_layers: int, layer_start: int = 4) -> None:
        super().__init__()
        self.layer_start = layer_start
        self.num_hidden_layers = num_hidden_layers
        self.layer_weights = nn.Parameter(torch.ones(num_hidden_layers + 1 - layer_start))

    def forward(self, layers: tuple[Tensor, ...]) -> Tensor:
        states_LBTD = torch.stack(layers[self.layer_start :])
        weighted = torch.einsum("lbtd,l->btd", states_LBTD, self.layer_weights)
        return weighted / self.layer_weights.sum()
