"""The folder of an index: plain files, replaced as one, readable while a build runs.

    manifest.json               what it is: model, prompt, dimension, and the names of the two files
    vectors-<generation>.npy    float32 [N, E]
    items-<generation>.jsonl    id and text of each row
    pending/                    vectors of an interrupted build, reused by the next one
    .polyvec-index              lock of a running build; marks the folder as an index

A build writes a new generation beside the old one and then replaces the manifest, so a process
killed at any moment leaves the old index or the new one.

The manifest has checksums of itself and of the texts, compared when the index is opened, and of
each block of vectors, compared when the block is first read and at every rebuild. Folders of
format 1 have none: they are searched as they are, and a rebuild reuses nothing of them.
"""

import contextlib
import json
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from polyvec.data.texts import Record
from polyvec.errors import IndexStoreError
from polyvec.index.rows import CheckedRows, block_sums
from polyvec.storage.checksums import DIGITS, crc32, file_crc32
from polyvec.storage.files import atomic_file
from polyvec.storage.vector_files import vector_file

FORMAT = 2
UNCHECKED = 1  # the format before there were checksums
MANIFEST, PENDING, LOCK = "manifest.json", "pending", ".polyvec-index"
STORED = "polyvec.json"  # of an index that is not of plain files
GENERATION = re.compile(r"(vectors|items)-[0-9a-f]{16}\.(npy|jsonl)")
TEMPORARY = re.compile(r"\.(vectors-|items-|manifest\.).*\.tmp")

LATER = ("options", "asked")  # keys that the first folders with checksums do not have


def built_with(model: str, scale: str, attention: str, options: str) -> str:
    """A model's name with its options of the command line."""
    name = f"--recipe {model} --scale {scale}" if scale else model
    attention = f"--attention {attention}" if attention else ""
    return " ".join(filter(None, (name or "unnamed", attention, options)))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an index contains; stored as manifest.json."""

    format: int
    model: str
    model_sha256: str
    prompt: str
    similarity: str
    dimension: int
    count: int
    vectors: str
    items: str
    scale: str = ""  # of a recipe, whose name is `model`
    attention: str = ""  # of a model that was loaded with another than its own
    options: str = ""  # with which `polyvec search` loads the model, as on the command line
    asked: str = ""  # what was asked for beside the documents' own prompt, as JSON
    items_crc32: str = ""
    vectors_crc32: str = ""  # of each block of rows, one after another
    crc32: str = ""  # of the other keys

    @property
    def built_with(self) -> str:
        """The model's name with its options of the command line."""
        return built_with(self.model, self.scale, self.attention, self.options)

    def written(self) -> dict[str, Any]:
        """Its keys in a folder; without the options where there are none, as older folders."""
        optional = ("scale", "attention", *LATER)
        return {k: v for k, v in asdict(self).items() if v or k not in optional}

    def own_sum(self) -> str:
        """The checksum of its other keys."""
        others = {
            key: value
            for key, value in sorted(asdict(self).items())
            if key != "crc32" and (value or key not in LATER)
        }
        return crc32(json.dumps(others).encode())

    @classmethod
    def new(cls, **fields: Any) -> "Manifest":
        """The manifest of a new generation, under file names that no other has."""
        generation = secrets.token_hex(8)
        return cls(
            FORMAT,
            vectors=f"vectors-{generation}.npy",
            items=f"items-{generation}.jsonl",
            **fields,
        )


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, None without one; IndexStoreError for a damaged one."""
    path = folder / MANIFEST
    try:
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if raw.get("format") not in (UNCHECKED, FORMAT):
            raise IndexStoreError(
                f"{path}: index format {raw.get('format')!r}, this version reads {FORMAT}; "
                "build the index again"
            )
        manifest = Manifest(**raw)
        types = Manifest.__annotations__
        wrong = [key for key, value in raw.items() if type(value) is not types[key]]
        if wrong:
            raise ValueError(f"{wrong[0]} is {raw[wrong[0]]!r}")
        if manifest.format == UNCHECKED and manifest.crc32:
            raise ValueError(f"format {UNCHECKED} has no checksums")
        if manifest.format != UNCHECKED and manifest.crc32 != manifest.own_sum():
            raise ValueError("its checksum is another one")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise IndexStoreError(f"{path}: damaged ({error}); build the index again") from None
    # The names are checked because a manifest from elsewhere could point outside its folder.
    for name in (manifest.vectors, manifest.items):
        if not GENERATION.fullmatch(name):
            raise IndexStoreError(
                f"{path}: {name!r} is not the name of an index file; build the index again"
            )
    return manifest


def read_generation(folder: Path, manifest: Manifest) -> tuple[CheckedRows, list[Record]]:
    """Vectors, checked when they are read, and texts; FileNotFoundError if the files are gone."""
    path = folder / manifest.vectors
    try:
        vectors_NE = np.load(path, mmap_mode="r", allow_pickle=False)
        path = folder / manifest.items
        items, found_sum = _read_items(path)
        if manifest.items_crc32 not in ("", found_sum):
            raise ValueError(f"checksum {found_sum}, stored {manifest.items_crc32}")
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # noqa: BLE001 - numpy and json raise a dozen kinds for damage
        raise IndexStoreError(f"{path}: damaged ({error}); build the index again") from None
    found = (vectors_NE.shape, vectors_NE.dtype, len(items))
    if found != ((manifest.count, manifest.dimension), np.float32, manifest.count):
        raise IndexStoreError(
            f"{folder}: damaged (manifest.json has {manifest.count} x {manifest.dimension}, "
            f"the files have vectors {found[0]} {found[1]} and {found[2]} texts); "
            "build the index again"
        )
    return CheckedRows(folder / manifest.vectors, vectors_NE, manifest.vectors_crc32), items


def _read_items(path: Path) -> tuple[list[Record], str]:
    """The texts of a file, and its checksum."""
    found, items = 0, []
    with path.open("rb") as file:
        for line in file:
            found = zlib.crc32(line, found)
            items.append(Record(**json.loads(line.decode())))
    return items, f"{found:0{DIGITS}x}"


def write_generation(
    folder: Path, manifest: Manifest, vectors_NE: np.ndarray, items: Sequence[Record]
) -> Manifest:
    """Write a new generation, switch the manifest to it, and clear up; the manifest as written."""
    # Not np.save: its error on a full disk names neither the reason nor the file.
    with vector_file(folder / manifest.vectors) as write:
        write([item.id for item in items], vectors_NE)
    with atomic_file(folder / manifest.items, "w") as file:
        file.writelines(json.dumps(_written(item), ensure_ascii=False) + "\n" for item in items)
    manifest = replace(
        manifest,
        items_crc32=file_crc32(folder / manifest.items),
        vectors_crc32=block_sums(vectors_NE),
    )
    manifest = replace(manifest, crc32=manifest.own_sum())
    with atomic_file(folder / MANIFEST, "w") as file:
        json.dump(manifest.written(), file, indent=2)
    _clear(folder, manifest)
    return manifest


def _written(item: Record) -> dict[str, Any]:
    """Without metadata as in folders of before there were any, which older versions read."""
    metadata = {"metadata": dict(item.metadata)} if item.metadata else {}
    return {"id": item.id, "text": item.text, **metadata}


def check_folder(folder: Path) -> None:
    """Raises IndexStoreError unless a folder is new, empty or an index: other files are safe."""
    if folder.exists() and not folder.is_dir():
        raise IndexStoreError(f"{folder}: exists and is not a folder; give another path")
    if (folder / STORED).exists():
        raise IndexStoreError(
            f"{folder}: contains an index that is not of plain files; leave out --plain, or give "
            "another folder"
        )
    if not folder.is_dir() or (folder / LOCK).is_file() or not any(folder.iterdir()):
        return
    # A copy of an index may lack the hidden lock; another program's manifest.json is an error.
    if read_manifest(folder) is None:
        raise IndexStoreError(
            f"{folder}: contains other files and no index; not overwritten, give another folder"
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One build at a time; the operating system releases the lock of a process that dies."""
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise IndexStoreError(
            f"{folder}: another process is building this index; wait until it is done"
        ) from None
    try:
        yield
    finally:
        lock.release()
        # On Windows the release removes the file, which also marks the folder as an index.
        (folder / LOCK).touch()


def _clear(folder: Path, manifest: Manifest) -> None:
    """Remove other generations, half-written files and the vectors of interrupted builds."""
    for path in folder.iterdir():
        ours = GENERATION.fullmatch(path.name) or TEMPORARY.fullmatch(path.name)
        if ours and path.name not in (manifest.vectors, manifest.items):
            # Windows refuses to remove a file that a reader has open; a later build removes it.
            with contextlib.suppress(PermissionError):
                path.unlink(missing_ok=True)
    shutil.rmtree(folder / PENDING, ignore_errors=True)
