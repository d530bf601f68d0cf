"""Files that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from polyvec.errors import DataError


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file beside `path` that takes its name when the block ends without an error.

    Killed or failing at any moment it leaves what was there before; an error also
    leaves no temporary file. Raises DataError if the folder is missing.
    """
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a finished one has the user's usual rights.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replaceable: str) -> Iterator[Path]:
    """A folder beside `path` that takes its name when the block ends without an error.

    An existing folder is replaced only if it is empty or holds a file `replaceable`,
    so that a wrong path never deletes a user's other files.
    """
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise DataError(f"{path}: a file is in the way of the folder")
    if path.is_dir() and any(path.iterdir()) and not (path / replaceable).is_file():
        raise DataError(f"{path}: not empty and holds no {replaceable}, so it is not overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.is_dir():
            # Two renames: between them the old folder lies under its .old name, whole.
            old = temporary.with_suffix(".old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
