"""The introspector: what an instruction asks for, added to the vector of a frozen model.

B texts, T tokens of the longest, D state size.
"""

import torch
from torch import Tensor, nn

from polyvec.embed.backbone.states import States
from polyvec.embed.part import HiddenSize, at_least, one_of
from polyvec.embed.pooling.attention import Attention, GatedFeedForward
from polyvec.embed.pooling.base import PoolingModule, real
from polyvec.embed.pooling.functions import POOLINGS
from polyvec.errors import SettingsError


class Introspector(PoolingModule):
    """Of a text alone its pooled states; of one with an instruction the intent, [B, D].

    The intent: bidirectional blocks over the states of instruction and text, pooled over the text
    and projected by a matrix that begins as zero (I3, Pan et al. 2024, arXiv:2308.10025). An
    instruction is known by its tokens being real and not pooled. With a template of the two forms
    "{text}" and "{text} {!instruction}" (pool_prompt, strip), whose vectors are averaged, a query
    is half the frozen model's vector plus half its intent: untrained, or without an instruction,
    it points where the frozen model's does. Documents have one form, and stay as they are.
    """

    def __init__(
        self,
        hidden_size: HiddenSize,
        num_layers: int = 2,
        num_heads: int = 8,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        at_least(1, "Introspector", num_layers=num_layers, num_heads=num_heads)
        one_of("Introspector: pooling", pooling, ("mean", "last", "first"))
        if hidden_size % num_heads:
            raise SettingsError(
                f"Introspector: hidden size {hidden_size} is not divisible by {num_heads} heads"
            )
        self.hidden_size = self.out_features = hidden_size
        self.num_layers, self.num_heads, self.pooling = num_layers, num_heads, pooling
        self.blocks = nn.ModuleList(_Block(hidden_size, num_heads) for _ in range(num_layers))
        self.norm_out, self.project = nn.LayerNorm(hidden_size), nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def vectors(self, states: States) -> Tensor:
        mask_BT, pooled_BT = states.attention_mask_BT.bool(), states.pooling_mask_BT.bool()
        pool = POOLINGS[self.pooling]
        stream_BTD = real(states.last_BTD, mask_BT)
        own_BD = pool(stream_BTD, pooled_BT)
        for block in self.blocks:
            stream_BTD = block(stream_BTD, mask_BT)
        intent_BD = self.project(pool(self.norm_out(stream_BTD), pooled_BT))
        instructed_B = (mask_BT & ~pooled_BT).any(dim=1)
        return torch.where(instructed_B[:, None], intent_BD, own_BD)

    def pruned(self, num_layers: int) -> "Introspector":
        """One of the first blocks only, with the same weights."""
        if not 1 <= num_layers < self.num_layers:
            raise SettingsError(
                f"an introspector of {self.num_layers} layers cannot be pruned to {num_layers}; "
                f"give 1 to {self.num_layers - 1}"
            )
        found = Introspector(self.hidden_size or 0, num_layers, self.num_heads, self.pooling)
        kept = {k: v for k, v in self.state_dict().items() if k in found.state_dict()}
        found.load_state_dict(kept)
        return found.to(self.project.weight.device)


class _Block(nn.Module):
    """Self-attention and a feed-forward, each with pre-norm and a residual."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.norm_self, self.norm_feed = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = Attention(size, num_heads, size // num_heads)
        self.feed = GatedFeedForward(size)

    def forward(self, stream_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        normed_BTD = self.norm_self(stream_BTD)
        stream_BTD = stream_BTD + self.attention(normed_BTD, normed_BTD, mask_BT)
        return stream_BTD + self.feed(self.norm_feed(stream_BTD))
