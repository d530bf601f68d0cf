"""The number type that weights are stored in, kept by a save wherever that loses nothing."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}
STORED = "_polyvec_stored_dtype"  # of a model's weights, in its folder


def keep_stored_dtype(model: nn.Module, weights: Path) -> None:
    """Remember the number type of most weights in a file; a pickle's is not looked up."""
    if weights.suffix == ".safetensors":
        with safe_open(weights, framework="pt") as file:
            kinds = Counter(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
        most = kinds.most_common(1)
        setattr(model, STORED, HALVES.get(most[0][0]) if most else None)


def as_stored(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Weights computed in float32 in the half precision that they were stored in.

    None if they were stored in float32 or would change: those that were trained stay as they are.
    Tensors that share their numbers do so in the result.
    """
    half: torch.dtype | None = getattr(model, STORED, None)
    if half is None:
        return None
    made: dict[tuple[int, torch.Size], Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        found[name] = tensor
        if tensor.dtype != torch.float32 or tensor.is_meta:
            continue
        key = (tensor.data_ptr(), tensor.shape)
        if key not in made:
            made[key] = tensor.detach().to(half)
            if not torch.equal(made[key].to(torch.float32), tensor.detach()):
                return None
        found[name] = made[key]
    return found
