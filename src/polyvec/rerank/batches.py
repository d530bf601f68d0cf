"""The loop of rerankers that read pairs in batches of about equal lengths.

P pairs.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed.backbone.modes import evaluating
from polyvec.embed.encoding import BATCH_TOKENS
from polyvec.embed.inputs.tokens import budget_batches
from polyvec.rerank.reranker import warn_truncated


class Read(Protocol):
    """A pair as a model reads it."""

    @property
    def truncated(self) -> bool: ...
    def __len__(self) -> int: ...


def batched_scores(
    model: nn.Module,
    pairs: Sequence[Read],
    score: Callable[[list[Any]], Tensor],
    *,
    device: torch.device,
    max_length: int,
) -> np.ndarray:
    """What `score` gives for batches of the pairs, in their order, float32 [P].

    The model is in evaluation mode meanwhile. Warns of pairs that were cut at `max_length` tokens.
    """
    warn_truncated(sum(each.truncated for each in pairs), len(pairs), f"{max_length} tokens")
    found_P = np.empty(len(pairs), np.float32)
    budget = BATCH_TOKENS.get(device.type, 8192)
    with evaluating(model), torch.inference_mode():
        for rows in budget_batches([len(each) for each in pairs], batch_tokens=budget):
            found_P[rows] = score([pairs[row] for row in rows]).cpu().numpy()
    return found_P
