"""Weights in four bits under an adapter (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

import importlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from polyvec.errors import MissingExtraError, ModelError


def quantise(model: Any, names: Sequence[str], *, kind: str, double: bool) -> None:
    """Replace linear layers by bitsandbytes' of four bits: kind "nf4" or "fp4", in place.

    They compute in the model's dtype. Raises ModelError where bitsandbytes does not run, and for
    layers that it cannot take.
    """
    bnb = bitsandbytes()
    if not model.name_or_path:
        raise ModelError(
            "adapter 'qlora': the weights are no longer those of a folder (merged, pruned, or with "
            "new tokens), and in four bits they cannot be saved beside the adapter; save the "
            "embedder and start from its folder"
        )
    try:
        for name in names:
            layer = model.get_submodule(name)
            if type(layer) is not nn.Linear:
                raise ModelError(
                    f"adapter 'qlora': {name} is {type(layer).__name__}, not nn.Linear"
                )
            parent, _, child = name.rpartition(".")
            found = _in_four_bits(bnb, layer, kind, double)
            setattr(model.get_submodule(parent), child, found)
    except (RuntimeError, NotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"adapter 'qlora': bitsandbytes does not run here ({reason})") from None
    model.is_loaded_in_4bit = True  # by which peft knows how to adapt them


def _in_four_bits(bnb: Any, layer: nn.Linear, kind: str, double: bool) -> nn.Module:
    found: Any = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type=kind,
        compress_statistics=double,
        device="meta",
    )
    found.weight = bnb.nn.Params4bit(
        layer.weight.detach().cpu(),
        requires_grad=False,
        quant_type=kind,
        compress_statistics=double,
    )
    # On a CPU with bfloat16, bitsandbytes (0.50) would compute in that whatever `compute_dtype`
    # says, in evaluation only, and fail for sizes that are no multiple of its blocks.
    found.support_avx512bf16_for_cpu = False
    if layer.bias is not None:
        found.bias = layer.bias
    moved: nn.Module = found.to(layer.weight.device)  # which quantises
    return moved.eval()


def in_four_bits(model: nn.Module) -> bool:
    """Whether some weights are."""
    return any(type(each).__name__ == "Params4bit" for each in model.parameters())


def bitsandbytes() -> Any:
    """The package; MissingExtraError without it."""
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError:
        raise MissingExtraError("bitsandbytes", "qlora", "adapter 'qlora'") from None
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"adapter 'qlora': bitsandbytes does not load here ({reason})") from None
