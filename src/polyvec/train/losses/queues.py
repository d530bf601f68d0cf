"""Negatives from earlier batches, encoded by a slowly following copy of the model.

M positive pairs, Q vectors of the queue, E vector size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.embed.part import wide
from polyvec.errors import SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.part import VectorSize, given, masked, needs, once
from polyvec.train.losses.softmax import Scores


@once
@needs("key_NE", "momentum_keys")
class MomentumQueue(nn.Module):
    """-log(e^p / (e^p + sum of e^n)), n the scores of the last `size` keys of earlier batches.

    The keys are positives as the momentum encoder reads them (MoCo, He et al. 2020,
    arXiv:1911.05722), which the batch must hold. Contriever (Izacard et al. 2022,
    arXiv:2112.09118): its key is the positive, and negatives come from the queue alone. ESimCSE
    (Wu et al. 2022, arXiv:2109.04380): `in_batch`, the positive and further negatives are the
    model's own. `momentum_keys = false` queues the model's own vectors (cross-batch memory, Wang
    et al. 2020, arXiv:1912.06798). After each step the momentum encoder's weights become `momentum`
    times themselves and the rest of the model's. The queue is part of the state dict; in eval mode
    it stays.
    """

    queue_QE: Tensor
    num_seen: Tensor

    def __init__(
        self,
        vector_size: VectorSize,
        size: int = 4096,
        temperature: float = 0.05,
        in_batch: bool = False,
        momentum_keys: bool = True,
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        if size < 1:
            raise SettingsError(f"loss 'momentum_queue': size is {size}, expected 1 or more")
        if not 0 <= momentum <= 1:
            raise SettingsError(f"loss 'momentum_queue': momentum is {momentum}, expected 0 to 1")
        self.size, self.temperature, self.momentum = size, temperature, momentum
        self.in_batch, self.momentum_keys = in_batch, momentum_keys
        self.register_buffer("queue_QE", torch.zeros(size, vector_size))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.long))

    def forward(self, batch: Compared) -> Tensor:
        keys_NE = given(batch, "key_NE", "momentum_queue") if self.momentum_keys else None
        scores = Scores.of(batch, self.temperature)
        row_M, column_M = scores.pairs
        query_ME = F.normalize(wide(batch.query_BE), dim=-1)[row_M]
        key_NE = batch.document_NE if keys_NE is None else keys_NE
        key_ME = F.normalize(wide(key_NE[column_M]).detach(), dim=-1)
        # A copy: the queue moves on before the backward pass reads it.
        queue_QE = self.queue_QE.to(query_ME, copy=True)
        filled_Q = torch.arange(self.size, device=row_M.device) < self.num_seen
        queued_MQ = masked(query_ME @ queue_QE.T / self.temperature, filled_Q)
        positive_M, total_M = scores.positive_M, scores.total_M
        if not self.in_batch:
            own_M = (query_ME * key_ME).sum(dim=-1) / self.temperature
            positive_M = total_M = own_M if keys_NE is not None else positive_M
        total_M = torch.logaddexp(total_M, queued_MQ.logsumexp(dim=1))
        if self.training:
            self._put(key_ME)
        return scores.mean(total_M - positive_M)

    @torch.no_grad()
    def _put(self, key_ME: Tensor) -> None:
        """Keys take the places of the oldest."""
        key_ME = key_ME[-self.size :]
        places = (self.num_seen + torch.arange(len(key_ME), device=key_ME.device)) % self.size
        self.queue_QE[places] = key_ME.to(self.queue_QE)
        self.num_seen += len(key_ME)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float = 0.999) -> None:
    """Each weight of `slow` becomes momentum * itself + (1 - momentum) * that of `fast`.

    The momentum encoder after a step; buffers are copied. Raises SettingsError if the two have
    not the same weights, or those of `fast` are shared out to several processes.
    """
    if not 0 <= momentum <= 1:
        raise SettingsError(f"momentum is {momentum}, expected 0 to 1")
    weights, other = (dict(module.named_parameters()) for module in (slow, fast))
    if any(hasattr(weight, "full_tensor") for weight in other.values()):
        raise SettingsError("a momentum encoder cannot follow a model under FSDP; train with DDP")
    if weights.keys() != other.keys():
        raise SettingsError("momentum encoder: the modules have different weights")
    for name, weight in weights.items():
        weight.lerp_(other[name].to(weight), 1 - momentum)
    buffers = dict(fast.named_buffers())
    for name, buffer in slow.named_buffers():
        buffer.copy_(buffers[name])
