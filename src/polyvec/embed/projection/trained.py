"""Step 5: maps of pooled vectors that are trained.

B texts, D size before, E size after.
"""

import itertools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.embed.part import InFeatures, Part, at_least, one_of, wide
from polyvec.errors import SettingsError, ShapeError


class Projector(Part):
    """Vectors [B, D] to [B, E], in the caller's dtype, each text independently.

    A subclass writes `project`, which gets and may return float32.
    """

    def __init__(self, in_features: InFeatures, out_features: int) -> None:
        super().__init__()
        at_least(1, type(self).__name__, in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, vectors_BD: Tensor) -> Tensor:
        """The mapped vectors, [B, E]. Raises ShapeError for vectors of another size."""
        return self._run(self.project, vectors_BD, self.in_features)

    def project(self, vectors_BD: Tensor) -> Tensor:
        raise NotImplementedError

    def _run(self, map_: Callable[[Tensor], Tensor], vectors: Tensor, size: int) -> Tensor:
        if vectors.shape[-1] != size:
            raise ShapeError(
                f"{type(self).__name__} expects vectors of {size} dimensions, "
                f"got {tuple(vectors.shape)}"
            )
        return map_(wide(vectors)).to(vectors.dtype)


class MLP(Projector):
    """One or two hidden layers with GELU, [B, E]; hidden layers are as wide as E by default.

    The two-layer map of LLaVA-like models (Liu et al. 2023, arXiv:2310.03744) is `num_hidden=1`.
    """

    def __init__(
        self,
        in_features: InFeatures,
        out_features: int,
        hidden_features: int | None = None,
        num_hidden: int = 1,
    ) -> None:
        super().__init__(in_features, out_features)
        one_of("MLP: num_hidden", num_hidden, (1, 2))
        self.hidden_features = out_features if hidden_features is None else hidden_features
        at_least(1, "MLP", hidden_features=self.hidden_features)
        self.num_hidden = num_hidden
        sizes = [in_features, *[self.hidden_features] * num_hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], out_features))

    def project(self, vectors_BD: Tensor) -> Tensor:
        return self.layers(vectors_BD)


class TopK(Projector):
    """The k largest entries of each vector, zeros elsewhere, [B, D].

    Largest by "magnitude", or by "value" if negative numbers mean absence. Has no weights.
    """

    output_kind = "sparse"

    def __init__(self, in_features: InFeatures, k: int, by: str = "magnitude") -> None:
        super().__init__(in_features, in_features)
        one_of("TopK: by", by, ("magnitude", "value"))
        if not 1 <= k <= in_features:
            raise SettingsError(f"TopK: k {k} is not between 1 and {in_features}")
        self.k, self.by = k, by

    def project(self, vectors_BD: Tensor) -> Tensor:
        size_BD = vectors_BD.abs() if self.by == "magnitude" else vectors_BD
        return keep(vectors_BD, size_BD.topk(self.k, dim=-1).indices)


class Gate(Projector):
    """Importance of each entry, ReLU, where a binary gate is open, exactly 0 where not, [B, E].

    Importance and gate are linear in the vector; the gate is open where its sigmoid exceeds
    `threshold`, with a straight-through gradient (SparTerm, Bai et al. 2020, arXiv:2010.00768).
    """

    def __init__(self, in_features: InFeatures, out_features: int, threshold: float = 0.5) -> None:
        super().__init__(in_features, out_features)
        if not 0 <= threshold < 1:
            raise SettingsError(f"Gate: threshold is {threshold}, expected 0 or more and below 1")
        self.threshold = threshold
        self.importance = nn.Linear(in_features, out_features)
        self.gate = nn.Linear(in_features, out_features)

    def project(self, vectors_BD: Tensor) -> Tensor:
        soft_BE = self.gate(vectors_BD).sigmoid()
        open_BE = (soft_BE > self.threshold).to(soft_BE.dtype)
        # soft - soft is exactly 0, so the value is the binary gate and the gradient the soft one.
        return self.importance(vectors_BD).relu() * (open_BE + (soft_BE - soft_BE.detach()))


class ResidualAdapter(Projector):
    """h + f(h), [B, D]; the identity before training, since the last layer of f is zero.

    For the vectors of a frozen model or a service (Search-Adaptor, Yoon et al. 2023,
    arXiv:2310.08750).
    """

    def __init__(self, in_features: InFeatures, hidden_features: int | None = None) -> None:
        super().__init__(in_features, in_features)
        self.hidden_features = in_features if hidden_features is None else hidden_features
        at_least(1, "ResidualAdapter", hidden_features=self.hidden_features)
        self.hidden = nn.Linear(in_features, self.hidden_features)
        self.out = nn.Linear(self.hidden_features, in_features)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def project(self, vectors_BD: Tensor) -> Tensor:
        return vectors_BD + self.out(F.gelu(self.hidden(vectors_BD)))


class Flow(Projector):
    """An invertible map to a space meant to be Gaussian, [B, D] (BERT-flow, Li et al. 2020,
    arXiv:2011.05864).

    Blocks as in Glow (arXiv:1807.03039): scale and shift, a fixed permutation of the
    dimensions, affine coupling. Scale and shift start at 1 and 0, not from a batch. Before
    training it only permutes dimensions, which changes no cosine. The loss is
    0.5 * |forward(x)|^2 - log_determinant(x).
    """

    def __init__(
        self,
        in_features: InFeatures,
        num_blocks: int = 4,
        hidden_features: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, in_features)
        at_least(2, "Flow", in_features=in_features)
        at_least(1, "Flow", num_blocks=num_blocks)
        self.hidden_features = in_features if hidden_features is None else hidden_features
        at_least(1, "Flow", hidden_features=self.hidden_features)
        self.num_blocks, self.seed = num_blocks, seed
        random = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(in_features, generator=random) for _ in range(num_blocks)]
        self.blocks = nn.ModuleList(_FlowBlock(order, self.hidden_features) for order in orders)

    def project(self, vectors_BD: Tensor) -> Tensor:
        return self._forward(vectors_BD)[0]

    def inverse(self, latents_BD: Tensor) -> Tensor:
        """The vectors that `forward` maps to these latents, [B, D]."""
        return self._run(self._inverse, latents_BD, self.out_features)

    def log_determinant(self, vectors_BD: Tensor) -> Tensor:
        """Log of |det| of the Jacobian of `forward` at each vector, [B]."""
        return self._run(lambda x_BD: self._forward(x_BD)[1], vectors_BD, self.in_features)

    def _forward(self, vectors_BD: Tensor) -> tuple[Tensor, Tensor]:
        log_det_B = vectors_BD.new_zeros(vectors_BD.shape[:-1])
        for block in self.blocks:
            vectors_BD, added_B = block(vectors_BD)
            log_det_B = log_det_B + added_B
        return vectors_BD, log_det_B

    def _inverse(self, latents_BD: Tensor) -> Tensor:
        for block in reversed(cast("list[_FlowBlock]", list(self.blocks))):
            latents_BD = block.inverse(latents_BD)
        return latents_BD


class _FlowBlock(nn.Module):
    order_D: Tensor

    def __init__(self, order_D: Tensor, hidden_features: int) -> None:
        super().__init__()
        self.size = len(order_D)
        self.num_kept = self.size // 2
        # Saved, since torch.randperm may differ between versions.
        self.register_buffer("order_D", order_D)
        self.log_scale_D = nn.Parameter(torch.zeros(self.size))
        self.shift_D = nn.Parameter(torch.zeros(self.size))
        self.hidden = nn.Linear(self.num_kept, hidden_features)
        self.out = nn.Linear(hidden_features, 2 * (self.size - self.num_kept))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        x_BD = ((x_BD + self.shift_D) * self.log_scale_D.exp())[..., self.order_D]
        kept, moved = x_BD[..., : self.num_kept], x_BD[..., self.num_kept :]
        log_scale, shift = self._coupling(kept)
        out_BD = torch.cat([kept, (moved + shift) * log_scale.exp()], dim=-1)
        return out_BD, log_scale.sum(dim=-1) + self.log_scale_D.sum()

    def inverse(self, z_BD: Tensor) -> Tensor:
        kept, moved = z_BD[..., : self.num_kept], z_BD[..., self.num_kept :]
        log_scale, shift = self._coupling(kept)
        z_BD = torch.cat([kept, moved * (-log_scale).exp() - shift], dim=-1)
        return z_BD[..., self.order_D.argsort()] * (-self.log_scale_D).exp() - self.shift_D

    def _coupling(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        # tanh bounds each scale to 1/e ... e, so that the inverse does not overflow.
        log_scale, shift = self.out(F.gelu(self.hidden(kept))).chunk(2, dim=-1)
        return log_scale.tanh(), shift


class SparseAutoencoder(Projector):
    """At most k of `num_latents` numbers above 0: ReLU(TopK(W (x - b_pre) + b)), [B, num_latents].

    CSR (Wen et al. 2025, arXiv:2503.01776); the decoder is W transposed, plus b_pre. With
    `normalize` each vector gets mean 0 and standard deviation 1 first.
    """

    output_kind = "sparse"

    def __init__(
        self, in_features: InFeatures, num_latents: int, k: int, normalize: bool = False
    ) -> None:
        super().__init__(in_features, num_latents)
        if not 1 <= k <= num_latents:
            raise SettingsError(f"SparseAutoencoder: k {k} is not between 1 and {num_latents}")
        self.num_latents, self.k, self.normalize = num_latents, k, normalize
        self.weight_ED = nn.Parameter(F.normalize(torch.randn(num_latents, in_features), dim=-1))
        self.bias_E = nn.Parameter(torch.zeros(num_latents))
        self.bias_pre_D = nn.Parameter(torch.zeros(in_features))

    def project(self, vectors_BD: Tensor) -> Tensor:
        vectors_BD, _, _ = self.scaled(vectors_BD)
        latents_BE = F.linear(vectors_BD - self.bias_pre_D, self.weight_ED, self.bias_E)
        return keep(latents_BE, latents_BE.topk(self.k, dim=-1).indices).relu()

    def decode(self, latents_BE: Tensor) -> Tensor:
        """Vectors [B, D] from latents."""
        return self._run(self._decode, latents_BE, self.out_features)

    def reconstruct(self, vectors_BD: Tensor) -> Tensor:
        """The vectors decoded from their k latents, [B, D]."""
        return self._run(self._reconstruct, vectors_BD, self.in_features)

    def _reconstruct(self, vectors_BD: Tensor) -> Tensor:
        _, mean_B1, std_B1 = self.scaled(vectors_BD)
        return self._decode(self.project(vectors_BD)) * std_B1 + mean_B1

    def scaled(self, vectors_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors as the encoder reads them, and the mean and scale that were removed."""
        mean_B1 = vectors_BD.mean(dim=-1, keepdim=True)
        if not self.normalize:
            return vectors_BD, torch.zeros_like(mean_B1), torch.ones_like(mean_B1)
        std_B1 = vectors_BD.std(dim=-1, keepdim=True)
        # The constant is sentence-transformers'.
        return (vectors_BD - mean_B1) / (std_B1 + 1e-5), mean_B1, std_B1

    def _decode(self, latents_BE: Tensor) -> Tensor:
        return latents_BE @ self.weight_ED + self.bias_pre_D


def keep(vectors_BD: Tensor, indices_BK: Tensor) -> Tensor:
    """The entries at the given indices of each row, zeros elsewhere, [B, D]."""
    values_BK = vectors_BD.gather(-1, indices_BK)
    return torch.zeros_like(vectors_BD).scatter(-1, indices_BK, values_BK)


# Add yours here; tests walk the table, and PROJECTIONS takes it over.
PROJECTORS: dict[str, type[Projector]] = {
    "mlp": MLP,
    "topk_mask": TopK,
    "gate": Gate,
    "residual_adapter": ResidualAdapter,
    "flow": Flow,
    "csr": SparseAutoencoder,
}
