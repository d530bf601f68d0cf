"""sha256 of large files, remembered for as long as the file system says that they are the same."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from polyvec.errors import ModelError, PolyvecError
from polyvec.storage.files import atomic_file, cache_folder

SMALL = 1_000_000  # bytes; hashing fewer is as fast as looking them up
# A file may change again within one tick of its clock. One that was older than this when it was
# hashed would have another time now.
SETTLED_NS = 2_000_000_000
MOST_ENTRIES = 256


def file_sha256(path: Path) -> str:
    """The sha256 of a file; that of a large one is read from the cache folder if it is known.

    It is known by the file's place, size, inode and times: `ctime` also changes where a program
    restores the time of the last write. A cache that cannot be read or written is no error.
    """
    now = time.time_ns()
    found = path.stat()
    if found.st_size < SMALL:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    real = os.path.realpath(path)
    stamp = [real, *(getattr(found, f"st_{key}") for key in ("size", "ino", "dev"))]
    stamp += [found.st_mtime_ns, found.st_ctime_ns]
    entry = cache_folder("hashes") / f"{hashlib.sha256(real.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(entry.read_bytes())
        if known["stamp"] == stamp and isinstance(known["sha256"], str):
            return str(known["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if max(found.st_mtime_ns, found.st_ctime_ns) + SETTLED_NS < now:
        keep(entry, {"stamp": stamp, "sha256": digest})
    return digest


def check_sha256(path: Path, expected: str, what: str, remedy: str) -> None:
    """Raises ModelError, naming file and both hashes, if the file is missing or another one."""
    if not path.is_file():
        raise ModelError(f"{path} is missing; {remedy}")
    found = file_sha256(path)
    if found != expected:
        raise ModelError(f"{path}: sha256 is {found}, expected {expected}, {what}; {remedy}")


def keep(entry: Path, value: object) -> None:
    """Write an entry of a cache as JSON, and remove the oldest; no error where that fails."""
    with contextlib.suppress(OSError, PolyvecError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(entry, "w") as file:
            json.dump(value, file)
        others = sorted(entry.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for old in others[:-MOST_ENTRIES]:
            old.unlink(missing_ok=True)
