"""Devices and number types by name."""

import torch

from polyvec.errors import InputError


def device_name(device: str | torch.device | None) -> str | None:
    """The device by its name, as the readers pass it on."""
    return str(device) if isinstance(device, torch.device) else device


def dtype_name(dtype: str | torch.dtype | None) -> str | None:
    """The dtype by its name: "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype


def check_device(name: str | torch.device) -> torch.device:
    """The device; InputError if it is not known, or not in this machine."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).split("\n")[0][:120]
        raise InputError(f"device {name!r} cannot be used ({first}); try 'cpu'") from None
    if device.type == "meta":
        raise InputError("device 'meta' holds no numbers; try 'cpu'")
    return device


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
