"""Learned latents that read a text's states: the trainable poolings of MLTP.

B texts, S keys of one text, D state size, N latents, L layers, H heads, C size of a head.
"""

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from polyvec.embed.backbone.states import States
from polyvec.embed.part import HiddenSize, at_least, one_of, wide
from polyvec.embed.pooling.attention import Attention, GatedFeedForward
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import POOLINGS
from polyvec.errors import SettingsError, ShapeError
from polyvec.registry import Fact

OVER = ("last_token", "last_layer", "all_layers")
# The names of `attn_pool.pt` in yixuantt/PoolingAndAttn, and ours. Its to_kv is both of ours.
RELEASED = {
    "latents": "latents_ND",
    "pos_emb.weight": "layers_LD",
    "cross_attend_blocks.0.norm.": "norm_keys.",
    "cross_attend_blocks.0.norm_context.": "norm_latents.",
    "cross_attend_blocks.0.fn.to_q.": "attention.to_query.",
    "cross_attend_blocks.0.fn.to_out.": "attention.to_out.",
    "cross_attend_blocks.1.norm.": "norm_feed.",
    "cross_attend_blocks.1.fn.net.0.": "feed.up.",
    "cross_attend_blocks.1.fn.net.2.": "feed.down.",
}
TO_KEY_AND_VALUE = "cross_attend_blocks.0.fn.to_kv.weight"


class TrainablePooling(PoolingModule):
    """Learned latents attend to the states, then a feed-forward, then their mean, [B, D].

    Keys are the pooled states of the last layer (`over="last_layer"`), the last of them alone
    (`last_token`), or one vector for each layer above the word embeddings, pooled by
    `layer_pooling`, plus a learned embedding of its layer (`all_layers`). Both steps have
    pre-norm and a residual to the latents (MLTP, Tang and Yang 2024, arXiv:2409.02727). The
    defaults are those of the released weights, whose `attn_pool.pt` `load_state_dict` accepts.
    """

    needs = frozenset({"all_layers"})

    def __init__(
        self,
        hidden_size: HiddenSize,
        num_latents: int = 768,
        num_heads: int = 32,
        head_size: int = 2048,
        over: str = "last_layer",
        num_layers: Annotated[int | None, Fact("num_layers", when=("over", "all_layers"))] = None,
        layer_pooling: str | None = None,
    ) -> None:
        super().__init__()
        at_least(
            1,
            "TrainablePooling",
            num_latents=num_latents,
            num_heads=num_heads,
            head_size=head_size,
        )
        self.hidden_size = self.out_features = hidden_size
        self.num_latents, self.num_heads, self.head_size = num_latents, num_heads, head_size
        self.over, self.num_layers, self.layer_pooling = over, num_layers, layer_pooling
        # On the instance: only all_layers makes the backbone return them.
        self.needs = self._needed()
        self.latents_ND = nn.Parameter(torch.randn(num_latents, hidden_size))
        self.norm_keys, self.norm_latents = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        if num_layers:
            self.layers_LD = nn.Parameter(torch.randn(num_layers, hidden_size))
        self.attention = Attention(hidden_size, num_heads, head_size)
        self.norm_feed, self.feed = nn.LayerNorm(hidden_size), GatedFeedForward(hidden_size)
        self.register_load_state_dict_pre_hook(_rename_released)

    def vectors(self, states: States) -> Tensor:
        # Text by text: latents * heads * head_size numbers each, 200 MB at the released size.
        return torch.cat([self._read(keys_1SD) for keys_1SD in self._keys(states)])

    def _read(self, keys_1SD: Tensor) -> Tensor:
        latents_1ND = self.latents_ND[None]
        out_1ND = latents_1ND + self.attention(
            self.norm_latents(latents_1ND), self.norm_keys(keys_1SD)
        )
        return (out_1ND + self.feed(self.norm_feed(out_1ND))).mean(dim=1)

    def _keys(self, states: States) -> list[Tensor]:
        """The keys of each text, [1, S, D], without padding."""
        pooling_mask_BT = states.pooling_mask_BT.bool()
        if self.over == "all_layers":
            return list(self._layers(states).split(1))
        texts = zip(states.last_BTD, pooling_mask_BT, strict=True)
        found = [wide(text_TD[read_T])[None] for text_TD, read_T in texts]
        return [keys_1SD[:, -1:] for keys_1SD in found] if self.over == "last_token" else found

    def _layers(self, states: States) -> Tensor:
        layers = (states.all_layers or ())[1:]  # the first are the word embeddings
        if len(layers) != self.num_layers:
            raise ShapeError(
                f"TrainablePooling expects {self.num_layers} layers, got {len(layers)}"
            )
        pool = POOLINGS[self.layer_pooling or "last"]
        keys_BLD = torch.stack([pool(wide(x), states.pooling_mask_BT) for x in layers], dim=1)
        return keys_BLD + self.layers_LD

    def _needed(self) -> frozenset[str]:
        one_of("TrainablePooling: over", self.over, OVER)
        if self.over != "all_layers":
            if self.num_layers is not None or self.layer_pooling is not None:
                raise SettingsError(
                    "TrainablePooling: num_layers and layer_pooling do nothing over "
                    f"{self.over}, only over all_layers"
                )
            return frozenset()
        one_of("TrainablePooling: layer_pooling", self.layer_pooling, ("last", "mean"))
        at_least(1, "TrainablePooling over all_layers", num_layers=self.num_layers or 0)
        return frozenset({"all_layers"})


def _rename_released(
    module: nn.Module, state: dict[str, Any], prefix: str, *_: object, **__: object
) -> None:
    """Gives the tensors of a released file our names, in place."""
    for key in [key for key in state if key.startswith(prefix)]:
        if key == prefix + TO_KEY_AND_VALUE:
            both = state.pop(key).chunk(2)
            for name, weight in zip(("to_key", "to_value"), both, strict=True):
                state[f"{prefix}attention.{name}.weight"] = weight
        elif ours := _our_name(key.removeprefix(prefix)):
            state[prefix + ours] = state.pop(key)


def _our_name(key: str) -> str | None:
    """Our name of a released tensor; None if it is none. Names that end in a dot are prefixes."""
    for theirs, ours in RELEASED.items():
        if key == theirs or (theirs.endswith(".") and key.startswith(theirs)):
            return ours + key[len(theirs) :]
    return None
