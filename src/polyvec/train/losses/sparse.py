"""Training a sparse autoencoder on vectors that stay as they are.

B queries, N documents, R texts of a side, D vector size, E latents.
"""

from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.embed.part import wide
from polyvec.embed.projection.trained import SparseAutoencoder, keep
from polyvec.errors import SettingsError
from polyvec.registry import Fact
from polyvec.train.compared import Compared
from polyvec.train.losses.info_nce import info_nce
from polyvec.train.losses.part import InBatch, once

Autoencoder = Annotated[Any, Fact("autoencoder")]


@once
class CSR(nn.Module):
    """MSE(k) + MSE(4 k) / 8 + beta * auxiliary + gamma * InfoNCE of the latents.

    MSE(k) compares vectors with what their k largest latents decode to. The auxiliary term, the
    error of what `num_auxiliary` dead latents decode of the rest, over the rest's variance, keeps
    latents alive: one is dead if no text of the last `dead_after` batches had it. Means over
    queries and documents (CSR, Wen et al. 2025, arXiv:2503.01776; beta 1 / 32; Gao et al. 2024,
    arXiv:2406.04093). The batch holds vectors before the autoencoder, which is the fact
    "autoencoder", an embedder's projection "csr".
    """

    autoencoder: SparseAutoencoder
    batches_since_fired_E: Tensor

    def __init__(
        self,
        autoencoder: Autoencoder,
        beta: float = 1 / 32,
        gamma: float = 1.0,
        temperature: float = 0.05,
        num_auxiliary: int = 512,
        dead_after: int = 30,
        in_batch: InBatch = True,
    ) -> None:
        super().__init__()
        if not isinstance(autoencoder, SparseAutoencoder):
            raise SettingsError(
                "loss 'csr' trains a sparse autoencoder, which the embedder does not have; add "
                'projections = [{ kind = "csr", num_latents = 1024, k = 32 }]'
            )
        self.autoencoder = autoencoder
        self.beta, self.gamma, self.temperature = beta, gamma, temperature
        self.num_auxiliary = min(num_auxiliary, autoencoder.num_latents)
        self.dead_after, self.in_batch = dead_after, in_batch
        fired = torch.zeros(autoencoder.num_latents, dtype=torch.long)
        self.register_buffer("batches_since_fired_E", fired)

    def forward(self, batch: Compared) -> Tensor:
        dead_E = self.batches_since_fired_E > self.dead_after
        terms, latents, fired = [], [], []
        for vectors in (batch.query_BE, batch.document_NE):
            term, latents_RE = self._reconstruct(wide(vectors), dead_E)
            terms.append(term)
            latents.append(latents_RE)
            fired.append((latents_RE > 1e-5).any(dim=0))
        if self.training:
            alive_E = fired[0] | fired[1]
            since_E = torch.where(alive_E, 0, self.batches_since_fired_E + 1)
            self.batches_since_fired_E.copy_(since_E)
        sparse = replace(batch, query_BE=latents[0], document_NE=latents[1])
        contrast = info_nce(sparse, temperature=self.temperature, in_batch=self.in_batch)
        return torch.stack(terms).mean() + self.gamma * contrast

    def _reconstruct(self, vectors_RD: Tensor, dead_E: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the reconstruction, and the k latents, [R, E]."""
        coder = self.autoencoder
        scaled_RD, mean_R1, std_R1 = coder.scaled(vectors_RD)
        before_RE = F.linear(scaled_RD - coder.bias_pre_D, coder.weight_ED, coder.bias_E)
        latents_RE, more_RE = (
            keep(before_RE, before_RE.topk(min(k, coder.num_latents), dim=-1).indices).relu()
            for k in (coder.k, 4 * coder.k)
        )
        by_k_RD, by_4k_RD = (
            coder.decode(each) * std_R1 + mean_R1 for each in (latents_RE, more_RE)
        )
        loss = F.mse_loss(by_k_RD, vectors_RD) + F.mse_loss(by_4k_RD, vectors_RD) / 8
        if self.beta:
            dead_RE = torch.where(dead_E, before_RE, 0.0)
            places = dead_RE.topk(self.num_auxiliary, dim=-1).indices
            decoded_RD = keep(dead_RE, places).relu() @ coder.weight_ED
            bias_RD = coder.bias_pre_D * std_R1
            rest_RD = vectors_RD - (by_k_RD - bias_RD).detach()
            error = F.mse_loss(decoded_RD * std_R1 + bias_RD, rest_RD)
            spread = F.mse_loss(rest_RD.mean(dim=0).expand_as(rest_RD), rest_RD)
            loss = loss + self.beta * torch.where(
                spread > 0, error / spread.clamp(min=1e-12), error
            )
        return loss, latents_RE
