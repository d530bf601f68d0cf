"""The trained part of `space_map.mlp`. N pairs, M other texts, A and B the sizes of the spaces."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 256
JUDGE = 128  # hidden units of TEIA's discriminator


def train_map(
    base: Callable[[np.ndarray], np.ndarray],
    source_NA: np.ndarray,
    target_NB: np.ndarray,
    others_MA: np.ndarray | None,
    *,
    pairwise: float,
    adversarial: float,
    hidden: int,
    steps: int,
    learning_rate: float,
    seed: int,
) -> Callable[[np.ndarray], np.ndarray]:
    """`base` with a perceptron added to it, which begins at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = source_NA.shape[1], target_NB.shape[1]
        added = nn.Sequential(nn.Linear(sizes[0], hidden), nn.GELU(), nn.Linear(hidden, sizes[1]))
        judge = nn.Sequential(nn.Linear(sizes[1], JUDGE), nn.GELU(), nn.Linear(JUDGE, 1))
    last: Any = added[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)

    def numbers(vectors: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(vectors, np.float32))

    source, target = numbers(source_NA), numbers(target_NB)
    start = numbers(base(source_NA))
    others = None if others_MA is None else numbers(others_MA)
    others_start = None if others_MA is None else numbers(base(others_MA))
    optimizer = torch.optim.AdamW(added.parameters(), learning_rate)
    judging = torch.optim.AdamW(judge.parameters(), learning_rate)
    for _ in range(steps):
        rows = torch.randint(len(source), (min(BATCH, len(source)),), generator=generator)
        mapped = start[rows] + added(source[rows])
        loss = F.mse_loss(mapped, target[rows]) * sizes[1]
        if pairwise:
            a, b = (F.normalize(each, dim=-1) for each in (mapped, target[rows]))
            loss = loss + pairwise * F.mse_loss(a @ a.T, b @ b.T)
        if adversarial and others is not None and others_start is not None:
            drawn = torch.randint(len(others), (BATCH,), generator=generator)
            fake = others_start[drawn] + added(others[drawn])
            real = target[torch.randint(len(target), (BATCH,), generator=generator)]
            scores = judge(torch.cat([fake.detach(), real]))[:, 0]
            truth = torch.cat([torch.zeros(BATCH), torch.ones(BATCH)])
            judging.zero_grad()
            F.binary_cross_entropy_with_logits(scores, truth).backward()
            judging.step()
            fooled = F.binary_cross_entropy_with_logits(judge(fake)[:, 0], torch.ones(BATCH))
            loss = loss + adversarial * fooled
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def mapped_by(vectors: np.ndarray) -> np.ndarray:
        return np.asarray(numbers(base(vectors)) + added(numbers(vectors)))

    return mapped_by
