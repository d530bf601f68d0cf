"""Tokens of a training batch from the gradient of a fine-tuning step.

Who sees gradients (federated training) sees tokens. V vocabulary, D and O the sizes of a
layer's inputs and outputs, N inputs, R the rank of a gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.errors import DataError, InputError, ShapeError


def tokens_of_table(gradient_VD: Tensor) -> list[int]:
    """Ids of the tokens in a batch, by the gradient of the table of token embeddings.

    A row has a gradient only if its token was read; a model with tied tables has one everywhere.
    """
    if gradient_VD.ndim != 2:
        raise ShapeError(f"expected the table's gradient [V, D], got {list(gradient_VD.shape)}")
    norm_V = gradient_VD.norm(dim=1)
    return torch.nonzero(norm_V > 1e-8 * norm_V.max()).flatten().tolist()


class PlantedLayer(nn.Module):
    """A layer that a malicious server puts behind the token embeddings, to read them from its
    gradient: the imprint of Decepticons (Fowl et al., ICLR 2023).

    Unit k is open for inputs whose measurement exceeds the k-th quantile: the gradients of
    neighbouring units differ by the tokens between their quantiles. Its output is 0 at first, so
    that the model computes as before.
    """

    def __init__(self, table_VD: Tensor, bins: int = 512, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        size = table_VD.shape[1]
        self.direction_D = F.normalize(torch.randn(size, generator=draw), dim=0)
        measured_V = table_VD.detach().float() @ self.direction_D
        shares = (torch.arange(bins) + 0.5) / bins
        self.imprint = nn.Linear(size, bins)
        self.out = nn.Linear(bins, size, bias=False)
        with torch.no_grad():
            self.imprint.weight.copy_(self.direction_D.expand(bins, size))
            self.imprint.bias.copy_(-torch.quantile(measured_V, shares))
            # All units go out alike, so that their gradients are comparable.
            self.out.weight.copy_(torch.randn(size, 1, generator=draw).expand(size, bins) * 1e-4)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        return inputs_BTD + self.out(F.relu(self.imprint(inputs_BTD)))

    def read(self, weight_KD: Tensor, bias_K: Tensor, table_VD: Tensor) -> list[int]:
        """Ids of the tokens whose embeddings stand in the gradient of `imprint`'s weight and bias.

        Of two tokens in one bin only their sum is seen, which is nearest to one of them or to none.
        """
        weights = torch.cat([weight_KD[:-1] - weight_KD[1:], weight_KD[-1:]])
        biases = torch.cat([bias_K[:-1] - bias_K[1:], bias_K[-1:]])
        used = biases.abs() > 1e-6 * biases.abs().max()
        found_ND = weights[used] / biases[used, None]
        distances_NV = torch.cdist(found_ND.float(), table_VD.detach().float())
        return sorted(set(distances_NV.argmin(1).tolist()))


def span_distances(gradient_OD: Tensor, inputs_ND: Tensor) -> Tensor:
    """The share of each input's length that lies outside what a linear layer has read, [N], 0 to 1.

    The gradient of a weight [O, D] is a sum of outer products with the layer's inputs, so these
    lie in the span of its rows. Raises DataError if there are as many of them as dimensions.
    """
    _, values, rows = torch.linalg.svd(gradient_OD.double(), full_matrices=False)
    basis_RD = rows[values > 1e-6 * values[0]]
    if len(basis_RD) == gradient_OD.shape[1]:
        raise DataError(
            f"the gradient has full rank ({len(basis_RD)}): the batch has as many tokens as the "
            "layer has dimensions, and every token lies in their span"
        )
    unit_ND = F.normalize(inputs_ND.double(), dim=-1)
    return (unit_ND - unit_ND @ basis_RD.T @ basis_RD).norm(dim=-1)


def tokens_of_layer(
    gradient_OD: Tensor, inputs: Callable[[int], Tensor], max_tokens: int, limit: float = 1e-3
) -> list[int]:
    """Ids of a text, in order, from the gradient of its model's first projection (query or key).

    inputs: what that layer reads of each token of the vocabulary at a place, [V, D]: its
    embedding with that of the place, normalised as the model does. At each place the token that is
    nearest to the span is taken; the text ends where none is within `limit`. The idea of DAGER
    (Petrov et al., NeurIPS 2024), for texts with fewer tokens than the layer has dimensions.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}, expected at least 1")
    found: list[int] = []
    for place in range(max_tokens):
        distance_V = span_distances(gradient_OD, inputs(place))
        if float(distance_V.min()) > limit:
            break
        found.append(int(distance_V.argmin()))
    return found


def batch_of_layer(
    gradient_OD: Tensor, inputs: Callable[[int], Tensor], max_tokens: int, limit: float = 1e-3
) -> list[list[int]]:
    """Of a batch of several texts the ids at each place, as `tokens_of_layer` has them of one.

    Which of a place's tokens are of one text is not told. A model without embeddings of places has
    all tokens at the first.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}, expected at least 1")
    found: list[list[int]] = []
    for place in range(max_tokens):
        near_V = span_distances(gradient_OD, inputs(place)) <= limit
        if not bool(near_V.any()):
            break
        found.append(torch.nonzero(near_V).flatten().tolist())
    return found
