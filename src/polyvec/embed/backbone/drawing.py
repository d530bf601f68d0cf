"""The next token from logits: the likeliest, or drawn; and whether rounding could change it.

Logits of a row differ in their last digits with the rows beside it. A token is certain if no
change of the logits by less than a tolerance would replace it; other tokens are computed again
from the row alone, so that an answer does not depend on the batch. V logits.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polyvec.errors import SettingsError

# Of the largest logit: 30 times what SmolLM2-135M showed in batches of all sizes (docs/log.md).
NOISE = {torch.float32: 3e-5, torch.float64: 1e-12}
FEW = 256  # tokens among which most nuclei lie


@dataclass(frozen=True, slots=True)
class Drawing:
    """How tokens are drawn: `temperature` 0 takes the likeliest and ignores the rest.

    `top_p` or `top_k` as in transformers, after the temperature. `seed` decides what is drawn.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_p < 1:
            raise SettingsError("top_k and top_p cannot be combined; leave one out")

    def generator(self) -> torch.Generator | None:
        return torch.Generator().manual_seed(self.seed) if self.temperature else None


def noise(generator: torch.Generator | None, size: int) -> Tensor | None:
    """What is added to logits so that the largest is a draw from their softmax, float32 [V].

    Gumbel noise; the same numbers serve to draw again when a row's logits are computed again.
    """
    if generator is None:
        return None
    tiny = torch.finfo(torch.float32).tiny
    return -torch.empty(size).exponential_(generator=generator).clamp_min_(tiny).log_()


def certain_max(scores_BV: Tensor, tolerance_B: Tensor) -> tuple[list[int], list[bool]]:
    """The largest of each row, and whether it leads by more than twice the tolerance."""
    best_B = scores_BV.max(dim=1)
    others_BV = scores_BV.scatter(1, best_B.indices[:, None], -torch.inf)
    lead_B = best_B.values - others_BV.max(dim=1).values
    # A second of -inf: the only one that is allowed.
    return best_B.indices.tolist(), (lead_B > 2 * tolerance_B).tolist()


def draw(
    logits_V: Tensor, noise_V: Tensor | None, drawing: Drawing, tolerance: float
) -> tuple[int, bool]:
    """The token, and whether it is certain; logits of -inf are never drawn."""
    if noise_V is None:
        (token,), (certain,) = certain_max(logits_V[None], torch.tensor([tolerance]))
        return token, certain
    logits_V = logits_V.cpu() / drawing.temperature
    tolerance = tolerance / drawing.temperature
    low, sure = _least(logits_V, drawing, tolerance)
    scores_V = (logits_V + noise_V).masked_fill(logits_V < low, -torch.inf)
    (token,), (certain,) = certain_max(scores_V[None], torch.tensor([tolerance]))
    if bool(logits_V[token] >= sure):
        return token, certain
    # On the border of what may be drawn: decided without tolerance, and not certain.
    exact, _ = _least(logits_V, drawing, 0.0)
    return int(scores_V.masked_fill(logits_V < exact, -torch.inf).argmax()), False


def _least(logits_V: Tensor, drawing: Drawing, tolerance: float) -> tuple[float, float]:
    """Logits below the first are surely not drawn, and from the second on they surely may be."""
    if drawing.top_p < 1:
        # A change of all logits by the tolerance changes no mass by more than twice of it.
        log_total = float(logits_V.double().logsumexp(0))
        return _borders(logits_V, drawing.top_p, 2 * tolerance, tolerance, log_total)
    if drawing.top_k is not None and drawing.top_k < len(logits_V):
        return _borders(logits_V, drawing.top_k, 0.0, tolerance, None)
    return -math.inf, -math.inf


def _borders(
    logits_V: Tensor, limit: float, slack: float, tolerance: float, log_total: float | None
) -> tuple[float, float]:
    """A token may be drawn if those before it weigh less than the limit.

    They weigh their probability, or 1 without `log_total`. Two tokens may change places if their
    logits differ by less than twice the tolerance.
    """
    for count in (FEW, len(logits_V)):
        sorted_K = logits_V.topk(min(count, len(logits_V))).values.double()
        ones = torch.ones_like(sorted_K)
        weight_K = ones if log_total is None else (sorted_K - log_total).exp()
        sums_K = torch.cat([torch.zeros(1, dtype=torch.double), weight_K.cumsum(0)])
        ahead_K = torch.searchsorted(-sorted_K, -(sorted_K + 2 * tolerance))
        beside_K = torch.searchsorted(-sorted_K, -(sorted_K - 2 * tolerance), right=True)
        possible_K = sums_K[ahead_K] < limit + slack
        # The first token may always be drawn, whatever the limit.
        sure_K = (sums_K[beside_K] - weight_K < limit - slack) | (beside_K == 1)
        low = float(sorted_K[possible_K][-1])
        if len(sorted_K) == len(logits_V) or low - 2 * tolerance > sorted_K[-1]:
            break
    return low, float(sorted_K[sure_K][-1]) if bool(sure_K.any()) else math.inf
