"""The formulas of proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347).

As trl's first PPOTrainer has them for texts. B texts of a batch, S tokens of the longest answer; a
mask is 1 at an answer's tokens.
"""

import torch
from torch import Tensor


def gae_advantages(
    rewards_BS: Tensor, values_BS: Tensor, mask_BS: Tensor, *, discount: float, gae: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (Schulman et al. 2015, arXiv:1506.02438); 0 outside of the mask."""
    values_BS, rewards_BS = values_BS * mask_BS, rewards_BS * mask_BS
    last_B = torch.zeros_like(rewards_BS[:, 0])
    found = []
    for place in reversed(range(rewards_BS.shape[1])):
        later_B = values_BS[:, place + 1] if place + 1 < rewards_BS.shape[1] else last_B * 0
        delta_B = rewards_BS[:, place] + discount * later_B - values_BS[:, place]
        last_B = delta_B + discount * gae * last_B
        found.append(last_B)
    advantages_BS = torch.stack(found[::-1], dim=1) * mask_BS
    return advantages_BS, advantages_BS + values_BS


def ppo_loss(
    new_BS: Tensor, old_BS: Tensor, advantages_BS: Tensor, mask_BS: Tensor, clip: float
) -> Tensor:
    """The clipped objective, negated: the mean over tokens."""
    ratio_BS = torch.exp((new_BS - old_BS) * mask_BS)
    clipped_BS = ratio_BS.clamp(1 - clip, 1 + clip)
    worst_BS = torch.maximum(-advantages_BS * ratio_BS, -advantages_BS * clipped_BS)
    return masked_mean(worst_BS, mask_BS)


def value_loss(
    new_BS: Tensor, old_BS: Tensor, returns_BS: Tensor, mask_BS: Tensor, clip: float
) -> Tensor:
    """Half the squared error of the values, which may move by `clip`."""
    clipped_BS = torch.clamp(new_BS, old_BS - clip, old_BS + clip)
    worst_BS = torch.maximum((new_BS - returns_BS) ** 2, (clipped_BS - returns_BS) ** 2)
    return 0.5 * masked_mean(worst_BS, mask_BS)


def masked_mean(values_BS: Tensor, mask_BS: Tensor) -> Tensor:
    return (values_BS * mask_BS).sum() / mask_BS.sum()


def whitened(values_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """With mean 0 and variance 1 over the mask."""
    mean = masked_mean(values_BS, mask_BS)
    variance = masked_mean((values_BS - mean) ** 2, mask_BS)
    return (values_BS - mean) * torch.rsqrt(variance + 1e-8) * mask_BS
