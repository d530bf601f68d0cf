"""The next token from logits: the likeliest, or drawn; and whether rounding could change it.

Logits of a row differ in their last digits with the rows beside it. A token is certain if no
change of the logits by less than a tolerance would replace it; other tokens are computed again
from the row alone, so that an answer does not depend on the batch. V logits, K of them that can
be drawn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from polyvec.errors import SettingsError

# Of the largest logit: ten times what SmolLM2-135M showed in batches of all sizes (docs/log.md).
NOISE = {torch.float32: 3e-5, torch.float64: 1e-12}
Noise = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Drawing:
    """How tokens are drawn: `temperature` 0 takes the likeliest and ignores the rest.

    `top_p` or `top_k` as in transformers, after the temperature. `seed`, of 64 bits, decides what
    is drawn.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_p < 1:
            raise SettingsError("top_k and top_p cannot be combined; leave one out")

    def noise(self, place: int) -> Noise | None:
        """What is added to the logits of tokens at this place of an answer, by their ids.

        The largest sum is a draw from the softmax (Gumbel noise). It depends on seed, place and
        id alone, so it serves again when the logits of a row are computed again.
        """
        if not self.temperature:
            return None
        return partial(_gumbel, _mixed(np.array([self.seed + place * GOLDEN], object) % 2**64)[0])


GOLDEN = 0x9E3779B97F4A7C15


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Well distributed 64 bits of each number (Steele et al. 2014, SplitMix)."""
    bits = numbers.astype(np.uint64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _gumbel(key: np.uint64, ids_K: np.ndarray) -> np.ndarray:
    # Products of 64 bits are meant to overflow; numpy warns of it for single numbers only.
    bits_K = _mixed((ids_K.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN) ^ key)
    uniform_K = ((bits_K >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform_K))


def certain_max(scores_BV: Tensor, tolerance_B: Tensor) -> tuple[list[int], list[bool]]:
    """The largest of each row, and whether it leads by more than twice the tolerance."""
    best_B = scores_BV.max(dim=1)
    others_BV = scores_BV.scatter(1, best_B.indices[:, None], -torch.inf)
    lead_B = best_B.values - others_BV.max(dim=1).values
    return best_B.indices.tolist(), (lead_B > 2 * tolerance_B).tolist()


def draw(
    logits_V: np.ndarray, drawing: Drawing, tolerance: float, noise: Noise | None
) -> tuple[int, bool]:
    """The token, and whether it is certain; logits of -inf are never drawn."""
    if noise is None:
        token, certain = _leader(logits_V, tolerance)
        return token, certain
    logits_V, tolerance = logits_V / drawing.temperature, tolerance / drawing.temperature
    low, sure = _borders(logits_V, drawing, tolerance)
    ids_K = np.flatnonzero((logits_V >= low) & (logits_V > -np.inf))
    scores_K = logits_V[ids_K] + noise(ids_K)
    place, certain = _leader(scores_K, tolerance)
    if logits_V[ids_K[place]] >= sure:
        return int(ids_K[place]), certain
    # On the border of what may be drawn: decided without tolerance, and not certain.
    exact, _ = _borders(logits_V, drawing, 0.0)
    return int(ids_K[np.where(logits_V[ids_K] >= exact, scores_K, -np.inf).argmax()]), False


def _leader(scores: np.ndarray, tolerance: float) -> tuple[int, bool]:
    """The place of the largest, and whether it leads by more than twice the tolerance."""
    best = int(scores.argmax())
    second = max(scores[:best].max(initial=-np.inf), scores[best + 1 :].max(initial=-np.inf))
    return best, bool(scores[best] - second > 2 * tolerance)


def _borders(logits_V: np.ndarray, drawing: Drawing, tolerance: float) -> tuple[float, float]:
    """Logits below the first are surely not drawn, and from the second on they surely may be.

    A token may be drawn if those before it weigh less than a limit: their probabilities less than
    top_p, or their number less than top_k. Two tokens may change places if their logits differ
    by less than twice the tolerance, which also changes no probability by more than that.
    """
    if drawing.top_p < 1:
        limit, slack, largest = drawing.top_p, 2 * tolerance, logits_V.max()
        # All below together have less than the probability that is left over.
        reach = math.log(len(logits_V) / max(1 - limit - slack, 1e-12)) + 2 * tolerance + 1
        sorted_K = _sorted(logits_V, largest - reach)
        total = np.exp(logits_V - largest).sum(dtype=np.float64)
        weight_K = np.exp(sorted_K - largest) / total
    elif drawing.top_k is not None and drawing.top_k < len(logits_V):
        limit, slack = drawing.top_k, 0.0
        least = np.partition(logits_V, -drawing.top_k)[-drawing.top_k]
        sorted_K = _sorted(logits_V, least - 4 * tolerance)
        weight_K = np.ones_like(sorted_K)
    else:
        return -math.inf, -math.inf
    sums_K = np.concatenate([[0.0], weight_K.cumsum()])
    ahead_K = np.searchsorted(-sorted_K, -(sorted_K + 2 * tolerance))
    beside_K = np.searchsorted(-sorted_K, -(sorted_K - 2 * tolerance), side="right")
    possible_K = sums_K[ahead_K] < limit + slack
    # The first token may always be drawn, whatever the limit.
    sure_K = (sums_K[beside_K] - weight_K < limit - slack) | (beside_K == 1)
    low = float(sorted_K[possible_K][-1])
    return low, float(sorted_K[sure_K][-1]) if sure_K.any() else math.inf


def _sorted(logits_V: np.ndarray, least: float) -> np.ndarray:
    """The logits from `least` on, the largest first, in float64."""
    chosen = logits_V[logits_V >= least] if least > -np.inf else logits_V
    return np.sort(chosen.astype(np.float64))[::-1]
