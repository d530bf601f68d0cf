"""What a local model's answers depend on, as a hash of the content of its files."""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "*.gguf")


def weights_hash(folders: Iterable[Path]) -> str:
    """sha256 over the weight files of model and adapters.

    A folder may be a file of weights itself (GGUF).
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(_weight_files(folder)):
            stat = path.stat()
            digest.update(_file_hash(path.resolve(), stat.st_size, stat.st_mtime_ns).encode())
    return digest.hexdigest()


def _weight_files(folder: Path) -> Iterable[Path]:
    if folder.is_file():
        return [folder]
    return {path for pattern in WEIGHTS for path in folder.glob(pattern)}


@lru_cache(maxsize=1024)
def _file_hash(path: Path, size: int, changed: int) -> str:
    """sha256 of a file; computed again if its size or time has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_hash(folders: Iterable[Path], **others: object) -> str:
    """sha256 over weights and what else decides an answer: tokenizer, template, config, dtype."""
    text = json.dumps({"weights": weights_hash(folders), **others}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
