"""Step 5: the projections of sentence-transformers: Dense, LayerNorm, Normalize.

B texts, D size before, E size after.
"""

import torch
from torch import Tensor, nn

from polyvec.embed.part import InFeatures
from polyvec.errors import ModelError, known


class Dense(nn.Module):
    """A linear layer with an activation, [B, D] -> [B, E]; optionally with a residual path."""

    def __init__(
        self,
        in_features: InFeatures,
        out_features: int,
        *,
        bias: bool = True,
        activation: str = "Tanh",
        use_residual: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ModelError(
                f"Dense: activation {activation!r} is not known.{known(activation, ACTIVATIONS)}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.activation_name = activation
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            # The name and the missing bias are those of sentence-transformers.
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, vectors_BD: Tensor) -> Tensor:
        out_BE = self.activation(self.linear(vectors_BD))
        if not self.use_residual:
            return out_BE
        return out_BE + (self.residual(vectors_BD) if hasattr(self, "residual") else vectors_BD)


class LayerNorm(nn.Module):
    """Layer normalisation of the vectors, [B, D] -> [B, D]."""

    def __init__(self, dimension: InFeatures) -> None:
        super().__init__()
        self.dimension = dimension
        self.norm = nn.LayerNorm(dimension)

    def forward(self, vectors_BD: Tensor) -> Tensor:
        return self.norm(vectors_BD)


TINY = 1e-12  # the least length; a vector of zeros stays one


class Normalize(nn.Module):
    """Vectors of length 1, [B, D] -> [B, D]."""

    def forward(self, vectors_BD: Tensor) -> Tensor:
        # As F.normalize, without its detour through two functions of Python.
        length_B1 = torch.linalg.vector_norm(vectors_BD, dim=-1, keepdim=True)
        return vectors_BD / length_B1.clamp_min(TINY)


# The only classes that a model file can name; names are looked up here and never imported.
# Of torch.nn those that need no argument; Softmax guesses a dimension, so it is not among them.
_NAMES = (
    *("CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity"),
    *("LeakyReLU", "LogSigmoid", "Mish", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus"),
    *("Softshrink", "Softsign", "Tanh", "Tanhshrink"),
)
ACTIVATIONS: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in _NAMES}
