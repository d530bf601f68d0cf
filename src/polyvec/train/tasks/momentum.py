"""A slowly following copy of the embedder, which encodes the keys of a momentum queue.

N texts, E vector size.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyvec.embed.embedder import Embedder
from polyvec.embed.part import wide
from polyvec.train.losses.queues import MomentumQueue, follow
from polyvec.train.tasks.encode import Read, encode, pieces


class MomentumEncoder(nn.Module):
    """A copy that is not trained (MoCo, He et al. 2020, arXiv:1911.05722); reads without dropout.

    A module, so that checkpoints keep its weights.
    """

    def __init__(self, embedder: Embedder, momentum: float) -> None:
        super().__init__()
        self.embedder = copy.deepcopy(embedder).requires_grad_(False)
        self.momentum = momentum

    def follow(self, embedder: Embedder) -> None:
        """Go towards the trained weights, after a step."""
        follow(self.embedder, embedder, self.momentum)

    @torch.no_grad()
    def keys(self, texts: Sequence[Read], budget: int) -> Tensor:
        """Vectors of texts, [N, E], computed in pieces of `budget` tokens."""
        self.embedder.eval()
        made, order, _, _ = pieces(self.embedder, texts, budget=budget)
        found = torch.cat([wide(encode(self.embedder, piece.payload)) for piece in made])
        places = torch.tensor(order, device=found.device)
        return torch.empty_like(found).index_copy(0, places, found)


def momentum_of(losses: nn.Module) -> float | None:
    """The momentum that the losses ask for, the largest of several; None without such a loss."""
    asked = [
        each.momentum
        for each in losses.modules()
        if isinstance(each, MomentumQueue) and each.momentum_keys
    ]
    return max(asked, default=None)
