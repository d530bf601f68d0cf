"""Who works on a shard: files that one process can make, and that go stale when it dies.

They need no locks of the file system, so processes of several machines may share a folder. A
process that was only slow does no harm: shards have fixed names and appear at once, so two that
wrote the same one wrote the same bytes.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HEARTBEAT = 5.0  # seconds between signs of life
STALE = 60.0  # without one a lease is anybody's


@contextlib.contextmanager
def leased(path: Path, *, heartbeat: float = HEARTBEAT, stale: float = STALE) -> Iterator[bool]:
    """Whether this process got the lease; kept alive inside, and let go at the end."""
    if not _taken(path, stale):
        yield False
        return
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(heartbeat):
            with contextlib.suppress(OSError):  # it was taken for dead: see above
                os.utime(path)

    thread = threading.Thread(target=beat, name="polyvec-lease", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def _taken(path: Path, stale: float) -> bool:
    for _ in range(2):
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if not _removed(path, stale):
                return False
            continue
        with os.fdopen(handle, "w") as file:
            file.write(f"{socket.gethostname()} {os.getpid()}\n")
        return True
    return False


def _removed(path: Path, stale: float) -> bool:
    """Whether the lease was stale and this process removed it: only one can rename it."""
    try:
        if time.time() - path.stat().st_mtime < stale:
            return False
        aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        path.rename(aside)
        aside.unlink()
    except FileNotFoundError:
        return False
    return True
