"""Pooling in vocabulary space by one weight for each token of the text.

B texts, T tokens of the longest, D state size, V vocabulary.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from polyvec.embed.backbone.states import States
from polyvec.embed.part import HiddenSize, at_least
from polyvec.embed.pooling.base import PoolingModule, real
from polyvec.embed.projection.trained import keep
from polyvec.errors import SettingsError
from polyvec.registry import Fact


class TokenWeights(PoolingModule):
    """The largest weight of each vocabulary entry among the text's tokens, [B, V]; 0 if absent.

    With `linear` a token's weight is relu(linear(its state)): the sparse head of bge-m3 (Chen et
    al. 2024, arXiv:2402.03216). Without, it is the state itself, of size 1: inference-free SPLADE,
    where a query's weights come from a table (Geng et al. 2024, arXiv:2411.04403). Entries of
    `unused_ids` (special tokens) are 0; `top_k` keeps the largest ones.
    """

    output_kind = "sparse"

    def __init__(
        self,
        hidden_size: HiddenSize,
        vocab_size: Annotated[int, Fact("vocab_size")],
        unused_ids: tuple[int, ...] = (),
        linear: bool = True,
        top_k: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, "TokenWeights", hidden_size=hidden_size, vocab_size=vocab_size)
        if not linear and hidden_size != 1:
            raise SettingsError(
                f"TokenWeights: states have {hidden_size} numbers, which need linear=true"
            )
        if top_k is not None and not 1 <= top_k <= vocab_size:
            raise SettingsError(f"TokenWeights: top_k {top_k} is not between 1 and {vocab_size}")
        if any(not 0 <= token < vocab_size for token in unused_ids):
            raise SettingsError(f"TokenWeights: unused_ids {unused_ids} exceed {vocab_size} tokens")
        self.hidden_size, self.vocab_size = hidden_size, vocab_size
        self.out_features = vocab_size
        self.unused_ids, self.top_k = tuple(unused_ids), top_k
        self.linear = linear
        self.weight = nn.Linear(hidden_size, 1) if linear else None

    def vectors(self, states: States) -> Tensor:
        weights_BT = self._weights(real(states.last_BTD, states.pooling_mask_BT))
        absent = -torch.inf
        weights_BT = weights_BT.masked_fill(~states.pooling_mask_BT.bool(), absent)
        out_BV = weights_BT.new_full((len(weights_BT), self.vocab_size), absent)
        # Padding may hold any id, and -inf is no maximum.
        out_BV = out_BV.scatter_reduce(1, states.ids_BT.long(), weights_BT, "amax")
        out_BV = torch.where(out_BV == absent, 0, out_BV)
        if self.unused_ids:
            used_V = torch.ones(self.vocab_size, dtype=torch.bool, device=out_BV.device)
            used_V[list(self.unused_ids)] = False
            out_BV = torch.where(used_V, out_BV, 0)
        if self.top_k is not None:
            out_BV = keep(out_BV, out_BV.abs().topk(self.top_k, dim=-1).indices)
        return out_BV

    def _weights(self, states_BTD: Tensor) -> Tensor:
        if self.weight is None:
            return states_BTD[..., 0]
        weights_BT: Tensor = self.weight(states_BTD)[..., 0]
        return weights_BT.relu()
