"""A cache of vectors on disk, by text, model and prompt: no text is encoded twice.

Each model and prompt has a folder, named by their hashes, of shards that are written atomically.
A shard holds the hash of each text, its vector, and whether the text was truncated. A changed
prompt costs only the texts that it applies to; another checkpoint at the same path costs all.

N texts, E numbers a vector.
"""

import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from polyvec.errors import DamagedCacheWarning, DataError
from polyvec.storage.files import atomic_file, cache_folder

KEY_BYTES = 16  # of a text's hash: among a billion texts a collision has a chance of 1e-21
ENVIRONMENT = "POLYVEC_CACHE"
SHARD = ".safetensors"


def default_folder() -> Path:
    """POLYVEC_CACHE, else polyvec/embeddings in the user's cache folder."""
    given = os.environ.get(ENVIRONMENT)
    return Path(given) if given else cache_folder("embeddings")


def text_key(text: str) -> bytes:
    """The hash by which a text is found, 16 bytes."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Hits:
    """The texts of a query that are in the cache: rows, vectors, and which were truncated."""

    rows: np.ndarray
    vectors: np.ndarray
    truncated: np.ndarray


class Entries:
    """The vectors of one model under one prompt. Keys are in memory, vectors stay in shards.

    A damaged shard is skipped with a DamagedCacheWarning: its texts are encoded again.
    """

    def __init__(self, folder: Path, dimension: int) -> None:
        self.folder, self.dimension = folder, dimension
        self._sources: list[Path | np.ndarray] = []
        self._places: dict[bytes, tuple[int, int, bool]] = {}  # source, row, truncated
        for path in sorted(folder.glob(f"*{SHARD}")):
            try:
                tensors = self._read(path)
            except DataError as error:
                warnings.warn(str(error), DamagedCacheWarning, stacklevel=2)
                continue
            raw = tensors["keys"].tobytes()
            keys = [raw[at : at + KEY_BYTES] for at in range(0, len(raw), KEY_BYTES)]
            self._add(path, keys, tensors["cut"].tolist())

    def __len__(self) -> int:
        return len(self._places)

    def get(self, texts: Sequence[str]) -> Hits:
        """Those of the texts that have an entry, in their order."""
        keys = map(text_key, texts)
        found = [(row, self._places[key]) for row, key in enumerate(keys) if key in self._places]
        vectors_NE = np.empty((len(found), self.dimension), np.float32)
        by_source: dict[int, list[int]] = {}
        for number, (_, (source, _, _)) in enumerate(found):
            by_source.setdefault(source, []).append(number)
        for source, numbers in by_source.items():
            rows = [found[number][1][1] for number in numbers]
            vectors_NE[numbers] = self._vectors(source)[rows]
        truncated = np.array([place[2] for _, place in found], bool)
        return Hits(np.array([row for row, _ in found], np.int64), vectors_NE, truncated)

    def put(
        self, texts: Sequence[str], vectors_NE: np.ndarray, truncated: np.ndarray | None = None
    ) -> None:
        """Write the vectors of texts as a shard."""
        if not len(texts):
            return
        keys = [text_key(text) for text in texts]
        flags = np.zeros(len(texts), np.uint8) if truncated is None else truncated
        path = self.folder / f"{uuid.uuid4().hex}{SHARD}"
        tensors: dict[str, np.ndarray] = {
            "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
            "vectors": np.ascontiguousarray(vectors_NE, np.float32),
            "cut": np.asarray(flags, np.uint8),  # the name that existing caches have
        }
        # Created with the first shard: looking up a cache leaves no empty folders.
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(save(tensors))
        self._add(path, keys, tensors["cut"].tolist())

    def include(self, texts: Iterable[str], vectors_NE: np.ndarray) -> None:
        """Use the rows of an array as entries too; nothing is written, a memmap is not loaded."""
        keys = [text_key(text) for text in texts]
        self._add(vectors_NE, keys, [0] * len(keys))

    def _add(
        self, source: Path | np.ndarray, keys: Sequence[bytes], truncated: Sequence[int]
    ) -> None:
        number = len(self._sources)
        self._sources.append(source)
        # A text in several sources is read from the last: all have the same vector.
        for row, (key, flag) in enumerate(zip(keys, truncated, strict=True)):
            self._places[key] = (number, row, bool(flag))

    def _vectors(self, number: int) -> np.ndarray:
        source = self._sources[number]
        return source if isinstance(source, np.ndarray) else self._read(source)["vectors"]

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        """The tensors of a shard; DataError if it is damaged."""
        try:
            tensors = load(path.read_bytes())
            num_texts = len(tensors["cut"])
            shapes = tensors["keys"].shape, tensors["vectors"].shape
        except (SafetensorError, KeyError) as error:
            raise DataError(f"{path}: damaged cache file ({error}); delete it") from None
        if shapes != ((num_texts, KEY_BYTES), (num_texts, self.dimension)):
            raise DataError(
                f"{path}: damaged cache file (keys {shapes[0]}, vectors {shapes[1]}, expected "
                f"{num_texts} x {KEY_BYTES} and {num_texts} x {self.dimension}); delete it"
            )
        return tensors


class EmbeddingCache:
    """Vectors of any number of models and prompts in one folder.

    Two processes may write at once: each writes shards of its own.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self._entries: dict[Path, Entries] = {}
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(
                f"{self.folder}: exists and is not a folder; give another folder for the cache"
            )

    def entries(self, model_sha256: str, prompt: Sequence[object], dimension: int) -> Entries:
        """The vectors of a model under a prompt, given as plain values."""
        described = json.dumps(prompt, ensure_ascii=True).encode()
        name = hashlib.sha256(described).hexdigest()[:16]
        folder = self.folder / model_sha256[:32] / name
        if folder not in self._entries:
            self._entries[folder] = Entries(folder, dimension)
        return self._entries[folder]
