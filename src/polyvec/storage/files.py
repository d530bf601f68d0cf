"""Files that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from polyvec.errors import DataError


def check_target(path: str | Path) -> Path:
    """Where a file is to be written, links followed; DataError if it cannot become a file.

    Called before long work, so that a wrong path costs no minutes.
    """
    # Replacing a link, or /dev/null, would put a file where something else stood.
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise DataError(f"{path}: the folder {target.parent} does not exist")
    if target.exists() and not target.is_file():
        raise DataError(f"{path}: is no file, and is not replaced by one")
    if not os.access(target.parent, os.W_OK):
        raise DataError(f"{path}: no right to write in the folder {target.parent}")
    return target


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file beside `path` that takes its name when the block ends without an error.

    Killed or failing at any moment it leaves what was there before; an error also
    leaves no temporary file. Raises DataError if no file can stand there; the OSError
    of a full disk carries `path`.
    """
    target = check_target(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a finished one has the user's usual rights.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        # A write that fails names no file, and a temporary's name says nothing to the user.
        if error.filename in (None, name):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replaceable: str) -> Iterator[Path]:
    """A folder beside `path` that takes its name when the block ends without an error.

    An existing folder is replaced only if it is empty or holds a file `replaceable`,
    so that a wrong path never deletes a user's other files.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise DataError(f"{path}: a file is in the way of the folder")
    if path.is_dir() and any(path.iterdir()) and not (path / replaceable).is_file():
        raise DataError(f"{path}: not empty and holds no {replaceable}, so it is not overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(new: Path, path: Path) -> None:
    """Two renames: between them the old folder lies under its .old name, whole."""
    if not path.is_dir():
        new.rename(path)
        return
    old = new.with_suffix(".old")
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk, after what came before it, once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
