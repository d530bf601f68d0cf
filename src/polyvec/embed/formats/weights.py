"""Weights of a folder: which files there are, whether they are whole, and pickles read safely."""

import json
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from polyvec.embed.formats.schema import check_pointer, read_json
from polyvec.errors import ModelError, PickledWeightsWarning

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
WHOLE = ("BOOL", "I16", "U16", "I32", "U32", "I64", "U64")  # bytes are a quantised model's


def find_weights(root: Path) -> list[Path]:
    """A transformer's weight files: safetensors, else pickles; [] if there are none.

    Raises ModelError, naming the file, for one that is missing, truncated, or a pointer of
    git-lfs instead of the file.
    """
    for name in (SAFETENSORS, PICKLED):
        index = root / f"{name}.index.json"
        if (root / name).is_file():
            found = [root / name]
        elif index.is_file():
            found = _shards(index)
        else:
            continue
        for path in found:
            check_whole(path)
        return found
    # Weights under another name, which transformers finds by its own rules.
    others = sorted(root.glob("*.safetensors"))
    for path in others:
        check_whole(path)
    return others


def _shards(index: Path) -> list[Path]:
    table = read_json(index)
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not names:
        raise ModelError(f"{index}: expected a table weight_map of weights and their files")
    files = sorted({str(name) for name in names.values()})
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{index.parent}: {len(missing)} of {len(files)} weight files are missing, the first "
            f"{missing[0]}; download the model again"
        )
    return [index.parent / name for name in files]


def check_whole(path: Path) -> None:
    """Raises ModelError for a pointer of git-lfs or a damaged safetensors file: truncated, or with
    a weight of whole numbers, as one changed byte makes of F32.
    """
    size = path.stat().st_size
    check_pointer(path)
    with path.open("rb") as file:
        start = file.read(8)
        if path.suffix != ".safetensors":
            if size == 0:
                raise ModelError(f"{path}: empty; download it again")
            return
        length = struct.unpack("<Q", start[:8])[0] if size >= 8 else 0
        file.seek(8)
        whole = 8 + length <= size and length > 0
        try:
            header = json.loads(file.read(length)) if whole else {}
        except (ValueError, RecursionError):
            raise ModelError(f"{path}: not a safetensors file; download it again") from None
    ends = [
        each["data_offsets"][1]
        for name, each in header.items()
        if name != "__metadata__" and isinstance(each, dict) and "data_offsets" in each
    ]
    expected = 8 + length + max(ends, default=0)
    if not whole or expected > size:
        raise ModelError(
            f"{path}: truncated or damaged ({size:,} bytes"
            f"{f' of {expected:,}' if whole else ''}); download it again"
        )
    _check_types(path, header)


def _check_types(path: Path, header: Mapping[str, Any]) -> None:
    for name, each in header.items():
        kind = each.get("dtype") if isinstance(each, dict) else None
        if kind in WHOLE and name.rpartition(".")[2] in ("weight", "bias"):
            raise ModelError(
                f"{path}: {name} has numbers of type {kind}, expected floating point; the file is "
                "damaged, download it again"
            )


def load_weights(folder: Path) -> dict[str, Tensor]:
    """A module's weights by name; ModelError names a file that is missing or cannot be read."""
    path = folder / SAFETENSORS
    if path.is_file():
        check_whole(path)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ModelError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    pickled = folder / PICKLED
    if not pickled.is_file():
        raise ModelError(f"{path} is missing")
    check_whole(pickled)
    tell_pickled(pickled)
    try:
        found = torch.load(pickled, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file raises anything
        raise ModelError(pickle_refusal(pickled, error)) from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ModelError(f"{pickled}: expected weights by name, got other objects")
    return found


def tell_pickled(path: Path) -> None:
    """Warns that a pickle is read, without running code of it."""
    warnings.warn(
        f"{path}: pickled weights, read by torch's weights-only loader; save_pretrained writes "
        "them as safetensors",
        PickledWeightsWarning,
        stacklevel=5,
    )


def pickle_refusal(path: Path, error: Exception) -> str:
    """The line about a pickle that torch's weights-only loader refuses, or cannot read."""
    reason = " ".join(str(error).split())
    code = isinstance(error, pickle.UnpicklingError) or "weights_only" in reason.lower()
    if code or "unsupported" in reason.lower():
        found = reason.partition("GLOBAL ")[2].split(" ")[0]
        named = f" ({found})" if found else ""
        return (
            f"{path}: holds more than weights{named} and could run code; not read. Convert it to "
            "safetensors where you trust it"
        )
    return f"{path}: cannot be read, truncated or damaged ({reason[:120]}); download it again"
