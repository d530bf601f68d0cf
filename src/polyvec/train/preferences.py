"""Losses of a preferred and a rejected continuation, and of agreement with them.

As ULLME has them (Man et al. 2024, arXiv:2408.03402): without a reference model. B queries.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.registry import Registry

# Takes log-probabilities of the preferred and the rejected text, [B], and beta; one loss each.
PREFERENCES: Registry[Callable[[Tensor, Tensor, float], Tensor]] = Registry("preference")


@PREFERENCES.register("dpo")
def dpo(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)) (Rafailov et al. 2023, arXiv:2305.18290)."""
    return -F.logsigmoid(beta * (chosen_B - rejected_B))


@PREFERENCES.register("hinge")
def hinge(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta (chosen - rejected)) (Zhao et al. 2023, arXiv:2305.10425)."""
    return torch.relu(1 - beta * (chosen_B - rejected_B))


@PREFERENCES.register("ipo")
def ipo(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """(chosen - rejected - 1 / (2 beta))^2, of means a token (Azar et al., arXiv:2310.12036)."""
    return (chosen_B - rejected_B - 1 / (2 * beta)) ** 2


@PREFERENCES.register("kto")
def kto(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """Pairs of KTO: each side against the other's mean, at least 0 (arXiv:2402.01306).

    The sum of both sides' losses, by two: their mean as in the released code.
    """
    chosen_kl, rejected_kl = chosen_B.mean().clamp(min=0), rejected_B.mean().clamp(min=0)
    gain = 1 - torch.sigmoid(beta * (chosen_B - rejected_kl))
    lost = 1 - torch.sigmoid(beta * (chosen_kl - rejected_B))
    return (gain + lost) / 2


def alignment(
    scores_N: Tensor, log_probabilities_N: Tensor, owner_N: Tensor, num_queries: int
) -> Tensor:
    """KL(softmax of log-probabilities || softmax of scores) over each query's documents, in nats.

    The mean over queries. Only the scores get a gradient; they are divided by a temperature
    before.
    """
    found = []
    for query in range(num_queries):
        mine = owner_N == query
        teacher = log_probabilities_N[mine].detach().log_softmax(0)
        student = scores_N[mine].log_softmax(0)
        found.append((teacher.exp() * (teacher - student)).sum())
    return torch.stack(found).mean()
