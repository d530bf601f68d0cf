"""Folders of compressors: compressor.json, parts.safetensors (memory, connector, task vectors, and
a trained decoder), encoder/ (the embedder), and README.md.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from polyvec.compress.soft.settings import CompressorSettings
from polyvec.embed.embedder import Embedder
from polyvec.errors import DataError, ModelError
from polyvec.recipe import plain
from polyvec.settings import fill
from polyvec.storage.files import atomic_folder

SETTINGS, PARTS, ENCODER = "compressor.json", "parts.safetensors", "encoder"
CARD = """# A soft context compressor

Contexts become a few vectors that its decoder reads. Load it with
`polyvec.compress.soft.compressor.SoftCompressor.from_pretrained(folder)`.
"""


def save(compressor: Any, path: Path) -> None:
    """Write the folder; it is there whole or not at all."""
    with atomic_folder(path, replaceable=SETTINGS) as folder:
        compressor.encoder.save_pretrained(folder / ENCODER)
        parts = tensors(compressor).items()
        save_file({name: each.detach().cpu().contiguous() for name, each in parts}, folder / PARTS)
        text = json.dumps(plain(compressor.settings), indent=1)
        (folder / SETTINGS).write_text(text, "utf-8")
        (folder / "README.md").write_text(CARD, "utf-8")


def read(folder: Path) -> tuple[Embedder, CompressorSettings]:
    """The encoder and the settings of a folder; DataError for a folder that is none."""
    try:
        raw = json.loads((folder / SETTINGS).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: not a soft compressor, {SETTINGS} cannot be read ({error})"
        ) from None
    settings: CompressorSettings = fill(CompressorSettings, raw, f"{folder / SETTINGS}")
    return Embedder.from_pretrained(str(folder / ENCODER)), settings


def restore(compressor: Any, folder: Path) -> None:
    """Copy the weights of a folder. ModelError if they are not those of its settings."""
    try:
        saved = load_file(folder / PARTS)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{folder / PARTS}: cannot be read ({' '.join(str(error).split())})"
        ) from None
    own = tensors(compressor)
    for name in sorted({*own, *saved}):
        if name not in own or name not in saved or own[name].shape != saved[name].shape:
            what = "is missing" if name not in saved else f"does not fit {SETTINGS}"
            raise ModelError(f"{folder / PARTS}: {name} {what}")
        with torch.no_grad():
            own[name].copy_(saved[name])


def tensors(compressor: Any) -> dict[str, Tensor]:
    """What is saved beside the encoder, by name."""
    decoder = compressor.decoder
    found = {f"memory.{k}": v for k, v in compressor.memory.state_dict().items()}
    found |= {f"connector.{k}": v for k, v in compressor.connector.state_dict().items()}
    found |= {f"tasks.{k}": v for k, v in decoder.tasks.items()}
    kept = {id(p) for part in compressor.projections for p in part.parameters()}
    return found | {
        f"decoder.{name}": each
        for name, each in decoder.named_parameters()
        if id(each) in kept and not name.startswith("tasks.")
    }
