"""A GGUF file: its metadata and its tensors, checked before anything is made of them.

The layout is that of ggml-org/ggml docs/gguf.md, versions 2 and 3, little endian. The header is
read here, not by the package gguf, whose reader takes seconds for a vocabulary and says nothing
of a file that is cut off; that package de-quantises the tensors.
"""

import functools
import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.formats.schema import check_pointer
from polyvec.errors import MissingExtraError, ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # where general.alignment is not set
# Types of metadata values by number: fixed sizes as struct writes them, then text and lists.
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
TEXT, LIST = 8, 9
PART = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")
AGAIN = "download it again"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor is, and how: shape in torch's order, ggml's type, bytes from `start`."""

    path: Path
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Metadata by key, tensors by name; of a split file those of all parts."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def architecture(self) -> str:
        return self.get("general.architecture", str)

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """A value of the metadata; ModelError if it has another type, or is not there."""
        value = self.metadata.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"{self.path}: the metadata have no {key}")
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelError(f"{self.path}: {key} is {str(value)[:40]!r}, expected {kind.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelError(f"{self.path}: {key} is {value}; {AGAIN}")
        return value

    def of(self, key: str, kind: type[T], default: T | None = None) -> T:
        """A value that the architecture has under its own name, such as llama.block_count."""
        return self.get(f"{self.architecture}.{key}", kind, default)

    def above_zero(self, key: str, kind: type[T], default: T | None = None) -> T:
        """A size, a base or a factor of the architecture; ModelError if it is 0 or less."""
        value: Any = self.of(key, kind, default)
        if value <= 0:
            raise ModelError(f"{self.path}: {self.architecture}.{key} is {value}; {AGAIN}")
        found: T = value
        return found

    def has(self, key: str) -> bool:
        """Whether the architecture has a value under this key."""
        return f"{self.architecture}.{key}" in self.metadata

    def tensor(self, name: str) -> Tensor:
        """The tensor, de-quantised, in float32; ModelError if it is not there, or not finite."""
        if name not in self.tensors:
            raise ModelError(f"{self.path}: no tensor {name}; {AGAIN}")
        stored = self.tensors[name]
        with stored.path.open("rb") as file:
            file.seek(stored.start)
            raw = np.frombuffer(file.read(stored.size), np.uint8)
        found = torch.from_numpy(_floats(raw, stored)).reshape(stored.shape)
        if not torch.isfinite(found).all():
            raise ModelError(f"{self.path}: tensor {name} holds NaN or infinity; {AGAIN}")
        return found


def read_gguf(path: Path) -> GgufFile:
    """The file, of a split one all parts; ModelError, in one line, if it is not whole."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    parts = tuple(parts_of(path))
    # A file that takes another's place may keep its size and time, as those of cp -p do.
    stats = [part.stat() for part in parts]
    return _read(
        path,
        parts,
        tuple((each.st_ino, each.st_ctime_ns, each.st_mtime_ns, each.st_size) for each in stats),
    )


@functools.lru_cache(maxsize=4)
def _read(path: Path, parts: tuple[Path, ...], states: tuple[tuple[int, ...], ...]) -> GgufFile:
    """Kept for the calls of one load, which ask for settings, tokenizer and weights in turn."""
    metadata, tensors = _read_part(parts[0])
    count = metadata.get("split.count", 1)
    if isinstance(count, int) and count > 1 and count != len(parts):
        no = metadata.get("split.no", 0)
        number = no + 1 if isinstance(no, int) else 1
        raise ModelError(
            f"{path}: part {number} of {count}, named otherwise than NAME-{number:05}-of-"
            f"{count:05}.gguf; give the parts their names, or join them with llama-gguf-split"
        )
    _check_part(parts, 0, metadata)
    for place, part in enumerate(parts[1:], start=1):
        more, others = _read_part(part)
        _check_part(parts, place, more)
        both = next((name for name in others if name in tensors), None)
        if both is not None:
            raise ModelError(
                f"{part}: part of another model: tensor {both[:60]!r} is in an earlier part, too; "
                f"{AGAIN}"
            )
        tensors |= others
    total = metadata.get("split.tensors.count", len(tensors))
    if len(parts) > 1 and total != len(tensors):
        raise ModelError(
            f"{path}: {len(tensors)} tensors in its {len(parts)} parts, {total} are announced; "
            f"{AGAIN}"
        )
    found = GgufFile(path, metadata, tensors)
    found.get("general.architecture", str)
    return found


def _check_part(parts: tuple[Path, ...], place: int, metadata: Mapping[str, Any]) -> None:
    """Raises ModelError if a part says that it is another one than its name does."""
    if len(parts) == 1:
        return
    said = metadata.get("split.no", place), metadata.get("split.count", len(parts))
    if said != (place, len(parts)):
        raise ModelError(
            f"{parts[place]}: split.no {said[0]} of {said[1]} by its metadata, not {place} of "
            f"{len(parts)}: a part that was renamed, or of another model; {AGAIN}"
        )


def parts_of(path: Path) -> list[Path]:
    """The parts of a split file in order, [path] for others; ModelError names missing ones."""
    named = PART.match(path.name)
    if named is None:
        return [path]
    stem, _, total = named.groups()
    names = [f"{stem}-{number:05}-of-{total}.gguf" for number in range(1, int(total) + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{path}: {len(missing)} of {len(names)} parts are missing, the first {missing[0]}; "
            "download them into the same folder"
        )
    return [path.parent / name for name in names]


def _read_part(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: empty; {AGAIN}")
    check_pointer(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(path, data)
        tensor_count, value_count = _preamble(cursor)
        metadata = {}
        for _ in range(value_count):
            key = cursor.text()
            if key in metadata:
                raise cursor.damaged(f"key {key[:60]!r} is there twice")
            metadata[key] = cursor.value(int(cursor.number("<I")))
        entries = [_entry(cursor) for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise cursor.damaged(f"general.alignment is {alignment!r}")
        begin = -(-cursor.at // alignment) * alignment
        return metadata, _placed(cursor, entries, begin, alignment)


def _preamble(cursor: "_Cursor") -> tuple[int, int]:
    """How many tensors and how many values of metadata follow."""
    path, data = cursor.path, cursor.data
    if data[:4] != MAGIC:
        raise ModelError(
            f"{path}: not a GGUF file (it starts with {data[:4]!r}, not with {MAGIC!r})"
        )
    cursor.at = 4
    version = int(cursor.number("<I"))
    if version & 0xFFFF == 0:
        raise ModelError(f"{path}: a big-endian GGUF file, which is not read; convert it again")
    if version not in VERSIONS:
        raise ModelError(f"{path}: GGUF version {version} is not read. Known: 2, 3.")
    counts = int(cursor.number("<Q")), int(cursor.number("<Q"))
    # The shortest entry of either table has 12 bytes.
    if sum(counts) * 12 > len(data):
        raise cursor.damaged(f"{counts[0]:,} tensors and {counts[1]:,} values are announced")
    return counts


def _entry(cursor: "_Cursor") -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of a tensor as the table has them."""
    name, rank = cursor.text(), int(cursor.number("<I"))
    if not 1 <= rank <= 4:
        raise cursor.damaged(f"tensor {name[:60]!r} has {rank} dimensions")
    shape = [int(cursor.number("<Q")) for _ in range(rank)]
    kind, offset = int(cursor.number("<I")), int(cursor.number("<Q"))
    return name, tuple(reversed(shape)), kind, offset  # ggml writes the fastest dimension first


def _placed(
    cursor: "_Cursor", entries: list[tuple[str, tuple[int, ...], int, int]], begin: int, step: int
) -> dict[str, Stored]:
    """The tensors by name; ModelError if one is cut off, or shares bytes with another."""
    found: dict[str, Stored] = {}
    end, length = begin, len(cursor.data)
    for name, shape, kind, offset in sorted(entries, key=lambda entry: entry[3]):
        size = _bytes(cursor, name, shape, kind)
        start = begin + offset
        if name in found or offset % step or start < end:
            raise cursor.damaged(f"tensor {name[:60]!r} at offset {offset:,} is out of place")
        end = start + size
        if end > length:
            raise ModelError(
                f"{cursor.path}: truncated or damaged ({length:,} bytes, tensor {name[:60]!r} "
                f"ends at {end:,}); {AGAIN}"
            )
        found[name] = Stored(cursor.path, shape, kind, start, size)
    return found


def _bytes(cursor: "_Cursor", name: str, shape: tuple[int, ...], kind: int) -> int:
    sizes = quantisations()
    if kind not in sizes:
        raise cursor.damaged(f"tensor {name[:60]!r} has type {kind}, which is not known")
    block, size = sizes[kind]
    if shape[-1] == 0 or shape[-1] % block or prod(shape) > 1 << 48:
        raise cursor.damaged(f"tensor {name[:60]!r} has shape {shape}, in blocks of {block}")
    return prod(shape) // block * size


class _Cursor:
    """Reads values one behind the other, never beyond the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: damaged: {what}; {AGAIN}")

    def take(self, count: int) -> int:
        """The place of the next `count` bytes."""
        at = self.at
        self.check(count)
        self.at = at + count
        return at

    def check(self, count: int) -> None:
        """Raises ModelError if the file ends before so many bytes."""
        if count > len(self.data) - self.at:
            raise ModelError(
                f"{self.path}: truncated or damaged (its header goes on beyond "
                f"{len(self.data):,} bytes); {AGAIN}"
            )

    def number(self, form: str) -> int | float | bool:
        value: int | float | bool
        (value,) = struct.unpack_from(form, self.data, self.take(struct.calcsize(form)))
        # The shortest decimal that gives the same float32: 1e-05 and not 9.99999974737875e-06.
        return float(str(np.float32(value))) if form == "<f" else value

    def text(self) -> str:
        length = int(self.number("<Q"))
        at = self.take(length)
        try:
            return self.data[at : at + length].decode()
        except UnicodeDecodeError:
            raise self.damaged(f"a text at byte {at:,} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """A value of metadata, of this type."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        if kind != LIST:
            raise self.damaged(f"a value before byte {self.at:,} has type {kind}")
        inner, count = int(self.number("<I")), int(self.number("<Q"))
        if inner in SCALARS:
            code = SCALARS[inner][1]
            at = self.take(count * struct.calcsize("<" + code))
            return list(struct.unpack_from(f"<{count}{code}", self.data, at))
        if inner != TEXT:
            raise self.damaged(f"a list before byte {self.at:,} has values of type {inner}")
        self.check(count * 8)  # before a list of that length is begun
        return [self.text() for _ in range(count)]


def _floats(raw: np.ndarray, stored: Stored) -> np.ndarray:
    """Values of a tensor's bytes, float32."""
    gguf = library()
    kind = gguf.GGMLQuantizationType(stored.kind)
    block, size = quantisations()[stored.kind]
    try:
        if kind.name in ("F16", "F32", "F64"):
            plain = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[kind.name]
            return raw.view(plain).astype(np.float32)
        rows = raw.reshape(-1, stored.shape[-1] // block * size)
        return np.ascontiguousarray(gguf.dequantize(rows, kind), np.float32)
    except NotImplementedError:
        raise ModelError(
            f"{stored.path}: weights of type {kind.name} cannot be de-quantised; take a file "
            "with another quantisation, such as Q8_0"
        ) from None


@functools.cache
def quantisations() -> dict[int, tuple[int, int]]:
    """Values in a block and its bytes, by the number of ggml's type."""
    found = library().constants.GGML_QUANT_SIZES
    return {int(kind): sizes for kind, sizes in found.items()}


def library() -> Any:
    """The package gguf; MissingExtraError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("gguf", "gguf", "reading a GGUF file") from None
    return gguf
