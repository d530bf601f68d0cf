"""JSON values by key on disk, durable one by one, for several processes at once.

A store is a folder of append-only files, of which each process writes one of its own. An entry is
a line with a checksum: {"sum": "...", "entry": {"key": "...", "value": ...}}. An entry that was
cut off when its process died, or damaged later, is left out with a warning.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
import uuid
import warnings
from pathlib import Path
from typing import IO, Any

from polyvec.errors import DamagedCacheWarning, DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

KEY_BYTES = 16  # among a billion keys a collision has a chance of 1e-21
HEX = 2 * KEY_BYTES
SUM, ENTRY, KEY = b'{"sum": "', b'", "entry": ', b'{"key": "'
BODY = len(SUM) + HEX + len(ENTRY)  # where the entry begins, whose bytes are summed
SYNC_S = 1.0  # a power failure costs the entries of this time; a killed process none
SEGMENT = ".jsonl"


def key_of(value: object) -> str:
    """The key of a JSON value: 32 hex digits. The order of an object's keys matters."""
    return _sum(json.dumps(value).encode())


class JsonStore:
    """Values by key; places are in memory, values stay in the files."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: exists and is not a folder; give another folder")
        self._places: dict[str, tuple[Path, int, int]] = {}  # segment, offset, bytes
        self._read_to: dict[Path, int] = {}
        self._own: Path | None = None
        self._synced, self._dirty = 0.0, False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def refresh(self) -> None:
        """Find what was added since, by other processes too."""
        with self._lock:
            for path in sorted(self.folder.glob(f"*{SEGMENT}")):
                self._scan(path)

    def get(self, key: str) -> Any:
        """The value, or None if there is none or it is damaged."""
        place = self._places.get(key)
        if place is None:
            return None
        path, at, size = place
        try:
            with path.open("rb") as file:
                file.seek(at)
                line = file.read(size)
        except FileNotFoundError:  # the user cleared the cache
            line = b""
        if _key(line) != key:
            self._places.pop(key, None)
            _warn(f"{path}: the entry at byte {at} is damaged; left out")
            return None
        return json.loads(line[BODY:-2])["value"]

    def put(self, key: str, value: object) -> None:
        """Append the value; it outlives this process from here on."""
        entry = json.dumps({"key": key, "value": value}).encode()
        line = SUM + _sum(entry).encode() + ENTRY + entry + b"}\n"
        with self._lock:
            if self._own is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._own = self.folder / f"{uuid.uuid4().hex}{SEGMENT}"
            path = self._own
            try:
                at = self._append(path, line)
            except OSError as error:
                error.filename = str(path)
                raise
            self._places[key] = (path, at, len(line))
            self._read_to[path] = at + len(line)

    def sync(self) -> None:
        """Have the disk itself store what was put."""
        with self._lock:
            if self._dirty and self._own is not None:
                with self._own.open("ab") as file:
                    self._sync(file)

    def _append(self, path: Path, line: bytes) -> int:
        with path.open("ab", buffering=0) as file:
            _locked(file, wait=True)
            at = file.seek(0, os.SEEK_END)
            rest = memoryview(line)
            try:
                while rest:
                    rest = rest[file.write(rest) or 0 :]
            except BaseException:  # a full disk, Ctrl-C: nothing may follow half a line
                file.truncate(at)
                raise
            self._dirty = True
            if time.monotonic() - self._synced > SYNC_S:
                self._sync(file)
            return at

    def _sync(self, file: IO[bytes]) -> None:
        os.fsync(file.fileno())
        self._synced, self._dirty = time.monotonic(), False

    def _scan(self, path: Path) -> None:
        at = self._read_to.get(path, 0)
        damaged = []
        with path.open("rb") as file:
            file.seek(at)
            for line in file:
                if not line.endswith(b"\n"):
                    _drop_torn(path, at)
                    break
                key = _key(line)
                if key is None:
                    damaged.append(at)
                else:
                    self._places[key] = (path, at, len(line))
                at += len(line)
        self._read_to[path] = at
        if damaged:
            _warn(
                f"{path}: {len(damaged)} damaged entries, the first at byte {damaged[0]}; left out"
            )


def _drop_torn(path: Path, at: int) -> None:
    """Cut off a last line without its end, unless its process is writing it just now."""
    try:
        with path.open("r+b") as file:
            if not _locked(file, wait=False):
                return
            file.seek(at)
            tail = file.read()
            if not tail or b"\n" in tail:  # completed by now
                return
            if tail[: len(SUM)] == SUM[: len(tail)]:  # ours, not a file put here by mistake
                file.truncate(at)
    except PermissionError:
        pass  # a cache that can only be read
    _warn(f"{path}: the last entry is incomplete, its process was killed; left out")


def _locked(file: IO[bytes], *, wait: bool) -> bool:
    """Whether the file is now locked for us, until it is closed."""
    if fcntl is None:
        return False
    with contextlib.suppress(OSError):  # held by another process, or a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    return False


def _key(line: bytes) -> str | None:
    """The key of an entry's line; None if the line is damaged."""
    entry = line[BODY:-2]
    head = SUM + _sum(entry).encode() + ENTRY + KEY
    if not line.startswith(head) or line[-2:] != b"}\n":
        return None
    return line[len(head) : len(head) + HEX].decode()


def _sum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=KEY_BYTES).hexdigest()


def _warn(message: str) -> None:
    warnings.warn(message, DamagedCacheWarning, stacklevel=4)
