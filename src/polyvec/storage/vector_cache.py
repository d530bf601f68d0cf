"""A cache of vectors on disk, by text, model and prompt: no text is encoded twice.

Each model and prompt has a folder, named by their hashes, of shards that are written atomically.
A shard holds the hash of each text, its vector, and whether the text was truncated. A changed
prompt costs only the texts that it applies to; another checkpoint at the same path costs all.
Checksums in a shard's metadata are compared at every read: those of the keys when a cache is
opened, that of the vectors when one is asked for. Shards written before there were checksums have
none, and are checked for their shapes and for finite numbers.

N texts, E numbers a vector.
"""

import contextlib
import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from polyvec.errors import DamagedCacheWarning, DataError
from polyvec.storage.checksums import crc32
from polyvec.storage.files import atomic_file, cache_folder
from polyvec.storage.key_table import KeyTable, Place

KEY_BYTES = 16  # of a text's hash: among a billion texts a collision has a chance of 1e-21
ENVIRONMENT = "POLYVEC_CACHE"
SHARD = ".safetensors"
KEYS_SUM, VECTORS_SUM = "crc32_keys", "crc32_vectors"
TYPES = {"keys": np.uint8, "vectors": np.float32, "cut": np.uint8}


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

    A damaged shard is skipped with a DamagedCacheWarning, one that was deleted without: their
    texts are encoded again.
    """

    def __init__(self, folder: Path, dimension: int) -> None:
        self.folder, self.dimension = folder, dimension
        self._sources: list[Path | np.ndarray] = []
        self._places = KeyTable()
        for path in sorted(folder.glob(f"*{SHARD}")):
            try:
                raw, cut = self._read_keys(path)
            except FileNotFoundError:  # another process cleared the cache
                continue
            except DataError as error:
                warnings.warn(str(error), DamagedCacheWarning, stacklevel=2)
                continue
            keys = [raw[at : at + KEY_BYTES] for at in range(0, len(raw), KEY_BYTES)]
            self._add(path, keys, cut)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, text: str) -> bool:
        return text_key(text) in self._places

    def get(self, texts: Sequence[str]) -> Hits:
        """Those of the texts that have an entry, in their order."""
        keys = map(text_key, texts)
        places = ((row, self._places.get(key)) for row, key in enumerate(keys))
        found = [(row, place) for row, place in places if place is not None]
        vectors_NE = np.empty((len(found), self.dimension), np.float32)
        by_source: dict[int, list[int]] = {}
        for number, (_, place) in enumerate(found):
            by_source.setdefault(place.source, []).append(number)
        whole_N = np.ones(len(found), bool)
        for source, numbers in by_source.items():
            stored = self._vectors(source)
            if stored is None:
                whole_N[numbers] = False
            else:
                vectors_NE[numbers] = stored[[found[number][1].row for number in numbers]]
        truncated = np.array([place.truncated for _, place in found], bool)
        rows = np.array([row for row, _ in found], np.int64)
        return Hits(rows[whole_N], vectors_NE[whole_N], truncated[whole_N])

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
        sums = {KEYS_SUM: _keys_sum(tensors), VECTORS_SUM: crc32(tensors["vectors"])}
        # Created with the first shard: looking up a cache leaves no empty folders.
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(save(tensors, sums))
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
            self._places.set(key, Place(number, row, bool(flag)))

    def _vectors(self, number: int) -> np.ndarray | None:
        """The vectors of a source; None, and its entries forgotten, if it is damaged or gone."""
        source = self._sources[number]
        if isinstance(source, np.ndarray):
            return source
        try:
            return self._read_vectors(source)
        except FileNotFoundError:
            pass
        except DataError as error:
            warnings.warn(str(error), DamagedCacheWarning, stacklevel=3)
        self._places.forget(number)
        return None

    def _read_keys(self, path: Path) -> tuple[bytes, list[int]]:
        """Keys of a shard, one after another, and which texts were cut; its vectors stay unread.

        Raises DataError if it is damaged.
        """
        with _damage_named(path), safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in ("keys", "cut")}
            stored = file.get_slice("vectors")
            shape = tuple(stored.get_shape())
            expected = (file.metadata() or {}).get(KEYS_SUM)
            if stored.get_dtype() != "F32":
                raise ValueError(f"vectors are {stored.get_dtype()}")
            self._check(tensors, shape)
            if expected not in (None, _keys_sum(tensors)):
                raise ValueError("the checksum of its keys is another one")
        return tensors["keys"].tobytes(), tensors["cut"].tolist()

    def _read_vectors(self, path: Path) -> np.ndarray:
        """The vectors of a shard; DataError if it is damaged."""
        with _damage_named(path):
            raw = path.read_bytes()
            tensors = load(raw)
            self._check(tensors, tensors["vectors"].shape)
            vectors_NE, sums = tensors["vectors"], _metadata(raw)
            if VECTORS_SUM not in sums and not np.isfinite(vectors_NE).all():
                raise ValueError("a vector holds NaN or infinity")
            found = {KEYS_SUM: _keys_sum(tensors), VECTORS_SUM: crc32(vectors_NE)}
            for name in found.keys() & sums.keys():
                if found[name] != sums[name]:
                    raise ValueError(f"checksum {name} is {found[name]}, stored {sums[name]}")
        return vectors_NE

    def _check(self, tensors: dict[str, np.ndarray], shape: tuple[int, ...]) -> None:
        num_texts = len(tensors["cut"])
        for name, each in tensors.items():
            if each.dtype != TYPES.get(name):
                raise ValueError(f"{name} is {each.dtype}")
        if (tensors["keys"].shape, shape) != (
            (num_texts, KEY_BYTES),
            (num_texts, self.dimension),
        ):
            raise ValueError(
                f"keys {tensors['keys'].shape}, vectors {shape}, expected {num_texts} x "
                f"{KEY_BYTES} and {num_texts} x {self.dimension}"
            )


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """A DataError, naming the shard, for whatever its bytes raise."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:150]
        raise DataError(f"{path}: damaged cache file ({reason}); delete it") from None


def _keys_sum(tensors: dict[str, np.ndarray]) -> str:
    """The checksum of a shard's keys and flags."""
    return crc32(tensors["keys"].tobytes() + tensors["cut"].tobytes())


def _metadata(raw: bytes) -> dict[str, str]:
    """What a safetensors file says beside its tensors; it was loaded, so its header is whole."""
    size = int.from_bytes(raw[:8], "little")
    found: dict[str, str] = json.loads(raw[8 : 8 + size]).get("__metadata__", {})
    return found


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
