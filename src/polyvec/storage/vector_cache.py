"""Vectors kept on disk by content, model and prompt, so that none is computed twice.

A folder for each model and prompt, named by their hashes; in it shards that appear whole or not
at all, each with the hash of every text, its vector, and whether the text was cut. What a model
is (weights, tokenizer, settings) and what stands around a text are in the folder's name: a
changed prompt costs the texts it is for, another checkpoint at the same path costs everything.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from polyvec.errors import DataError
from polyvec.storage.files import atomic_file

KEY_BYTES = 16  # of a text's hash: two of a billion texts meet by chance once in 10^20
ENVIRONMENT = "POLYVEC_CACHE"
SHARD = ".safetensors"


def default_folder() -> Path:
    """POLYVEC_CACHE, else polyvec/embeddings in the user's cache folder."""
    if os.environ.get(ENVIRONMENT):
        return Path(os.environ[ENVIRONMENT])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "polyvec" / "embeddings"


@dataclass(slots=True)
class Kept:
    """What a shelf holds of some texts: their rows, vectors and whether each was cut."""

    rows: np.ndarray
    vectors: np.ndarray
    cut: np.ndarray


@dataclass(slots=True)
class Shelf:
    """The vectors of one model under one prompt. Keys are in memory, vectors in their shards."""

    folder: Path
    where: dict[bytes, tuple[str, int, bool]] = field(default_factory=dict)

    def get(self, texts: Sequence[str], dimension: int) -> Kept:
        """Those of the texts that are kept, by row."""
        found = [(row, self.where.get(_key(text))) for row, text in enumerate(texts)]
        held = [(row, *place) for row, place in found if place is not None]
        vectors = np.empty((len(held), dimension), np.float32)
        by_shard: dict[str, list[int]] = {}
        for number, (_, shard, _, _) in enumerate(held):
            by_shard.setdefault(shard, []).append(number)
        for shard, numbers in by_shard.items():
            places = [held[number][2] for number in numbers]
            vectors[numbers] = _read(self.folder / shard)["vectors"][places]
        rows = np.array([row for row, *_ in held], np.int64)
        return Kept(rows, vectors, np.array([cut for *_, cut in held], bool))

    def put(self, texts: Sequence[str], vectors: np.ndarray, cut: np.ndarray) -> None:
        """Keep the vectors of texts; whole or not at all."""
        if not len(texts):
            return
        keys = np.frombuffer(b"".join(_key(text) for text in texts), np.uint8)
        name = f"{uuid.uuid4().hex}{SHARD}"
        tensors: dict[str, np.ndarray] = {
            "keys": keys.reshape(-1, KEY_BYTES),
            "vectors": np.ascontiguousarray(vectors, np.float32),
            "cut": np.asarray(cut, np.uint8),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / name) as file:
            file.write(save(tensors))
        self._add(name, tensors)

    def read(self) -> "Shelf":
        """Look at what lies in the folder."""
        for path in sorted(self.folder.glob(f"*{SHARD}")):
            self._add(path.name, _read(path))
        return self

    def _add(self, name: str, tensors: dict[str, np.ndarray]) -> None:
        raw = tensors["keys"].tobytes()
        for row, cut in enumerate(tensors["cut"].tolist()):
            key = raw[row * KEY_BYTES : (row + 1) * KEY_BYTES]
            self.where[key] = (name, row, bool(cut))


class EmbeddingCache:
    """Vectors of any number of models and prompts below one folder.

    Two processes may write at once: each writes shards of its own.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self._shelves: dict[Path, Shelf] = {}
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: is no folder, no vectors can be kept there")

    def shelf(self, model_sha256: str, prompt: Sequence[object]) -> Shelf:
        """The vectors of a model under a prompt: whatever stands around the texts, as values."""
        described = json.dumps(prompt, ensure_ascii=True).encode()
        name = hashlib.sha256(described).hexdigest()[:16]
        folder = self.folder / model_sha256[:32] / name
        if folder not in self._shelves:
            self._shelves[folder] = Shelf(folder).read()
        return self._shelves[folder]


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        tensors = load(path.read_bytes())
        fits = len(tensors["keys"]) == len(tensors["vectors"]) == len(tensors["cut"])
    except (SafetensorError, KeyError) as error:
        raise DataError(f"{path}: not a shard of vectors ({error}); delete it") from None
    if not fits:
        raise DataError(f"{path}: keys and vectors do not fit; delete it")
    return tensors


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()
