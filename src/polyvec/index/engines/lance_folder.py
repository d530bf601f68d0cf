"""The folder of a LanceDB index: its description, its lock, and errors in one line.

polyvec.json            what it is, and the name of its table; replaced as one
texts-<key>.lance       the rows, in versions: a write is there, or not, as a whole
.polyvec-index          lock of a writer; marks the folder as an index
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb

from polyvec.errors import IndexStoreError, PolyvecError
from polyvec.index.engines.interface import Description
from polyvec.index.folder import LOCK, STORED
from polyvec.storage.checksums import crc32

FULL = ("no space left", "disk quota", "file too large", "os error 28", "os error 27")


@dataclass(frozen=True, slots=True)
class Stored:
    """What polyvec.json holds."""

    description: Description
    table: str
    trained_rows: int = 0  # that the vector index was trained on
    nprobes: int = 0  # partitions of it that a query reads; 0: it is not used
    refine: int = 0  # for each text that is asked for, so many are compared by their floats

    def as_json(self) -> str:
        """With a checksum of the rest."""
        raw = {
            "description": self.description.as_dict(),
            "table": self.table,
            "trained_rows": self.trained_rows,
            "nprobes": self.nprobes,
            "refine": self.refine,
        }
        return json.dumps({**raw, "crc32": _sum(raw)}, indent=2, ensure_ascii=False)

    @classmethod
    def read(cls, folder: Path) -> "Stored | None":
        """None if there is no such file; IndexStoreError for a damaged or newer one."""
        path = folder / STORED
        try:
            raw = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError) as error:
            raise IndexStoreError(f"{path}: damaged ({error}); build the index again") from None
        if not isinstance(raw, dict) or not isinstance(raw.get("description"), dict):
            raise IndexStoreError(f"{path}: damaged (no description); build the index again")
        # First, because a newer format may have other keys.
        description = Description.read(raw["description"], str(path))
        if raw.pop("crc32", None) != _sum(raw):
            raise IndexStoreError(
                f"{path}: damaged (its checksum is another one); build the index again"
            )
        table = raw.get("table")
        # One from elsewhere could point outside its folder.
        if not isinstance(table, str) or Path(table).name != table:
            raise IndexStoreError(f"{path}: {table!r} is not the name of a table")
        found: tuple[Any, ...] = tuple(
            raw.get(key) for key in ("trained_rows", "nprobes", "refine")
        )
        if not all(isinstance(value, int) for value in found):
            raise IndexStoreError(f"{path}: damaged (not a number); build the index again")
        return cls(description, table, *found)


def _sum(raw: dict[str, Any]) -> str:
    return crc32(json.dumps(raw, sort_keys=True).encode())


def check_folder(folder: Path) -> None:
    """Raises IndexStoreError unless a folder is new, empty or an index: other files are safe."""
    if folder.exists() and not folder.is_dir():
        raise IndexStoreError(f"{folder}: exists and is not a folder; give another path")
    known = (LOCK, STORED)
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / n).exists() for n in known):
        raise IndexStoreError(
            f"{folder}: contains other files and no index; not overwritten, give another folder"
        )


def connect(folder: Path) -> Any:
    """The database, whose tables follow what other processes write."""
    return lancedb.connect(str(folder), read_consistency_interval=timedelta(0))


def open_table(folder: Path, name: str) -> Any:
    """The table; IndexStoreError if it is missing or cannot be read."""
    if not (folder / f"{name}.lance").is_dir():
        raise IndexStoreError(f"{folder}: {name}.lance is missing; build the index again")
    with errors(folder):
        return connect(folder).open_table(name)


@contextlib.contextmanager
def errors(folder: Path) -> Iterator[None]:
    """What the library raises, as an IndexStoreError of one line."""
    try:
        yield
    except PolyvecError:
        raise
    except Exception as error:  # noqa: BLE001 - ValueError, OSError, RuntimeError, of Rust and Arrow
        told = " ".join(str(error).split())
        if any(sign in told.lower() for sign in FULL):
            raise IndexStoreError(
                f"{folder}: the disk is full; what was stored before is there. Free some space "
                "and run it again"
            ) from None
        reason = told.split(", /root/")[0].split(", /home/")[0][:300]
        raise IndexStoreError(f"{folder}: {type(error).__name__} ({reason})") from None
