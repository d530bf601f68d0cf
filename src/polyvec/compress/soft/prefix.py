"""Vectors as a prefix of a language model's input embeddings.

The bridge of xRAG, PE-Rank and ELM, of connectors between encoder and decoder, and of inverters.
B rows, I vectors a row, E their size, D the model's state size.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.errors import ShapeError


class VectorPrefix(nn.Module):
    """Each vector becomes `num_tokens` input embeddings: [B, I, E] to [B, I * num_tokens, D].

    num_layers: 1 is a linear map, which begins as the identity where it keeps the size; 2 has a
        hidden layer of `hidden` (default: D) and GELU.
    like: a table of token embeddings; the output then starts with their root mean square, so that
        the first layers see what they are used to, and a trained gain changes it from there.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_tokens: int = 1,
        *,
        num_layers: int = 2,
        hidden: int | None = None,
        like: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.num_tokens = in_features, out_features, num_tokens
        sizes = [in_features, *[hidden or out_features] * (num_layers - 1)]
        sizes.append(out_features * num_tokens)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(itertools.pairwise(sizes)):
            layers += [nn.GELU()] if number else []
            layers.append(nn.Linear(before, after))
        if len(layers) == 1 and sizes[0] == sizes[1]:
            # A last state is near the embedding of the token that it predicts, where a model's
            # input and output tables are one: a good place to start from.
            nn.init.eye_(layers[0].weight)  # type: ignore[arg-type]
            nn.init.zeros_(layers[0].bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers)
        self.gain = None
        if like is not None:
            self.gain = nn.Parameter(like.detach().float().square().mean().sqrt())

    def forward(self, vectors_BIE: Tensor) -> Tensor:
        if vectors_BIE.ndim != 3 or vectors_BIE.shape[-1] != self.in_features:
            raise ShapeError(
                f"VectorPrefix takes [B, I, {self.in_features}], got {list(vectors_BIE.shape)}"
            )
        found = self.layers(vectors_BIE)
        found_BMD = found.reshape(len(found), -1, self.out_features)
        if self.gain is not None:
            found_BMD = F.rms_norm(found_BMD, (self.out_features,)) * self.gain
        return found_BMD


def rms(table: Tensor) -> float:
    """Root mean square of a table's numbers."""
    return float(table.detach().float().square().mean().sqrt())


def like_tokens(num: int, table: Tensor) -> Tensor:
    """Vectors to start from, [num, D]: the mean of the table's rows, each with a little noise.

    They are drawn from the global generator, which a stage has seeded.
    """
    mean_D, spread_D = table.detach().float().mean(0), table.detach().float().std(0)
    return mean_D + torch.randn(num, table.shape[1], device=table.device) * spread_D
