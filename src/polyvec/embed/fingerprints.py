"""The content hash of a model, computed once for each state of it."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

# Numbers of each tensor in the stamp. `.data` edits change no version counter, so only the
# sample shows them; more numbers would make a repeated fingerprint cost what it saves.
SAMPLE = 256


class Fingerprints:
    """Hashes of one model, by the settings that are left out of them.

    A hash of all weights takes long (tens of milliseconds for MiniLM, a minute for 7B), and is
    asked for at every search. It is computed again only if a cheap stamp has changed: settings,
    and of every tensor its place in memory, its version counter and a sample of its numbers, one
    of each row at least. Edits of single numbers through `.data` may stay unseen.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], tuple[bytes, str]] = {}

    def of(
        self,
        settings: Mapping[str, Any],
        tokenizer: Tokenizer,
        weights: Mapping[str, Tensor],
        *,
        without: Collection[str] = (),
    ) -> str:
        """sha256 over settings, tokenizer and weights, but not the settings in `without`."""
        key, now = tuple(sorted(without)), _stamp(settings, weights)
        stamp, found = self._found.get(key, (b"", ""))
        if stamp != now:
            entering = {name: value for name, value in settings.items() if name not in without}
            found = _fingerprint(entering, tokenizer, weights)
            self._found[key] = now, found
        return found


def _fingerprint(
    settings: Mapping[str, Any], tokenizer: Tokenizer, weights: Mapping[str, Tensor]
) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(tokenizer.to_str().encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stamp(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    samples = []
    for name, tensor in weights.items():
        # Inference tensors have no version counter.
        version = None if tensor.is_inference() else tensor._version
        digest.update(f"{name}{tensor.data_ptr()} {version}{tensor.dtype}{tensor.shape}".encode())
        flat = tensor.detach().reshape(-1)
        samples.append(flat[:: max(1, len(flat) // SAMPLE)].double())
        if tensor.ndim > 1 and len(flat):
            # New tokens are usually set row by row, through `.data`.
            rows = tensor.detach().flatten(1)
            samples.append(rows[:, rows.shape[1] // 2].double())
    if samples:
        # Joined first, since each copy from an accelerator waits for it.
        digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.digest()
