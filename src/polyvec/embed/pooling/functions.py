"""Step 4: hidden states become one vector a text.

B texts, T tokens of the longest text, D state size. `mask_BT` marks the states that are pooled,
`attention_mask_BT` real tokens (default: those pooled): they differ where a prompt is attended
to but not pooled. No function depends on the padding side (SILENT row 11). Each returns [B, D]
in the states' dtype, computed in float32 or wider.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polyvec.errors import ShapeError
from polyvec.registry import Registry

Pooling = Callable[..., Tensor]  # (states_BTD, mask_BT, attention_mask_BT=mask_BT) -> [B, D]


def mean(states_BTD: Tensor, mask_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
    """Mean of the pooled states (Reimers and Gurevych 2019, arXiv:1908.10084)."""
    return (_sum(states_BTD, mask_BT) / _count(mask_BT)).to(states_BTD.dtype)


def mean_sqrt_len(
    states_BTD: Tensor, mask_BT: Tensor, attention_mask_BT: Tensor | None = None
) -> Tensor:
    """Sum of pooled states over the root of their number (Cer et al. 2018, arXiv:1803.11175)."""
    return (_sum(states_BTD, mask_BT) / _count(mask_BT).sqrt()).to(states_BTD.dtype)


def weighted_mean(
    states_BTD: Tensor, mask_BT: Tensor, attention_mask_BT: Tensor | None = None
) -> Tensor:
    """Mean weighted by position 1, 2, 3, ... in the text (Muennighoff 2022, arXiv:2202.08904).

    In a causal model later states have seen more of the text. Positions count from the start of
    the input, an excluded prompt included, as in sentence-transformers;
    `weighted_mean_text` counts from the first pooled token.
    """
    attention_mask_BT = mask_BT if attention_mask_BT is None else attention_mask_BT
    place_BT = attention_mask_BT.to(_wide(states_BTD)).cumsum(dim=1)
    return _weighted(states_BTD, mask_BT, place_BT)


def weighted_mean_text(
    states_BTD: Tensor, mask_BT: Tensor, attention_mask_BT: Tensor | None = None
) -> Tensor:
    """Mean weighted by 1, 2, 3, ... over the pooled tokens alone.

    As `weighted_mean`, but for an excluded prompt, which is not counted: LLM2Vec's, GritLM's and
    L3Prune's weights (Thennal et al. 2024, arXiv:2410.14578).
    """
    return _weighted(states_BTD, mask_BT, mask_BT.to(_wide(states_BTD)).cumsum(dim=1))


def _weighted(states_BTD: Tensor, mask_BT: Tensor, place_BT: Tensor) -> Tensor:
    weight_BT = torch.where(mask_BT.bool(), place_BT, 0)
    total_B1 = weight_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return (torch.einsum("btd,bt->bd", _real(states_BTD, mask_BT), weight_BT) / total_B1).to(
        states_BTD.dtype
    )


def max_(states_BTD: Tensor, mask_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
    """Largest value in each dimension over the pooled states."""
    return states_BTD.masked_fill(~mask_BT.bool()[..., None], float("-inf")).amax(dim=1)


def first(states_BTD: Tensor, mask_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
    """State of the first pooled token: [CLS] in BERT-like encoders."""
    # argmax returns the first of equal values.
    return states_BTD[_rows(states_BTD), mask_BT.int().argmax(dim=1)]


def last(states_BTD: Tensor, mask_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
    """State of the last pooled token, for causal models (Wang et al. 2024, arXiv:2401.00368)."""
    # From 1, so that a pooled token at position 0 exceeds the zeros of padding.
    place_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    return states_BTD[_rows(states_BTD), (place_T * mask_BT).argmax(dim=1)]


# Add yours here; tests walk the table. Its order is that of concatenation when several are used.
POOLINGS: Registry[Pooling] = Registry(
    "pooling",
    {
        "first": first,
        "max": max_,
        "mean": mean,
        "mean_sqrt_len": mean_sqrt_len,
        "weighted_mean": weighted_mean,
        "last": last,
        "weighted_mean_text": weighted_mean_text,
    },
    accepts=lambda found: callable(found) and not inspect.isclass(found),
    expected="a function (states_BTD, mask_BT, attention_mask_BT)",
)


# Those that give zeros for a text of which nothing is pooled.
MEANS = frozenset({"mean", "mean_sqrt_len", "weighted_mean"})


def pool(
    names: Sequence[str],
    states_BTD: Tensor,
    mask_BT: Tensor,
    attention_mask_BT: Tensor,
    *,
    zero_if_empty: bool = False,
) -> Tensor:
    """The named poolings side by side, [B, D * number of names].

    With `zero_if_empty` a text without a pooled token has zeros, if all poolings are means.

    Raises ShapeError if masks and states are of different batches or a text has no pooled token.
    """
    if mask_BT.shape != states_BTD.shape[:2] or attention_mask_BT.shape != mask_BT.shape:
        raise ShapeError(
            f"pooling: states {tuple(states_BTD.shape)} with masks {tuple(mask_BT.shape)} "
            f"and {tuple(attention_mask_BT.shape)}"
        )
    if not zero_if_empty and not bool(mask_BT.any(dim=1).all()):
        raise ShapeError("pooling: a text has no token to pool")
    found = []
    for name in names:
        vectors_BD = POOLINGS.find(name)(states_BTD, mask_BT, attention_mask_BT)
        # Anything else would be broadcast where vectors are gathered.
        if vectors_BD.shape != (len(states_BTD), states_BTD.shape[-1]):
            raise ShapeError(
                f"pooling {name!r} gave vectors of shape {tuple(vectors_BD.shape)}, expected "
                f"{(len(states_BTD), states_BTD.shape[-1])}"
            )
        found.append(vectors_BD)
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


def _wide(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


def _real(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    # torch.where, not multiplication: padding may be NaN or inf, and 0 * NaN is NaN.
    return torch.where(mask_BT.bool().unsqueeze(-1), states_BTD, 0).to(_wide(states_BTD))


def _sum(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return _real(states_BTD, mask_BT).sum(dim=1)


def _count(mask_BT: Tensor) -> Tensor:
    # At least 1, so that a text of which nothing is pooled has zeros.
    return mask_BT.sum(dim=1, keepdim=True).clamp(min=1)


def _rows(states_BTD: Tensor) -> Tensor:
    return torch.arange(len(states_BTD), device=states_BTD.device)
