"""Files and folders that appear complete or not at all, and the user's cache folder."""

import contextlib
import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from polyvec.errors import DataError, InputError

STALE_S = 24 * 60 * 60  # temporary files that were not written to for so long have no writer

LOCK = ".lock"  # in a folder that a process holds


def cache_folder(name: str) -> Path:
    """The folder of this name in polyvec's part of the user's cache folder; not created."""
    import platformdirs

    # Checked here because older platformdirs honour it on Linux only.
    base = os.environ.get("XDG_CACHE_HOME")
    ours = (
        Path(base, "polyvec") if base else platformdirs.user_cache_path("polyvec", appauthor=False)
    )
    return ours / name


def as_path(value: object, what: str) -> Path:
    """The path; InputError for what is none: another type, "", which is the current folder to
    pathlib, or a null byte, which no file system has."""
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise InputError(f"{what} is {type(value).__name__} {str(value)[:60]!r}, expected a path")
    if not os.fspath(value).strip() or "\0" in os.fspath(value):
        raise InputError(f"{what} is {value!r}, which names no file or folder")
    return Path(value)


def files_below(folder: Path) -> list[Path]:
    """What is no folder below this one, sorted; links to folders are not followed.

    Raises the OSError of a folder that may not be read: Path.rglob leaves it out.
    """

    def refuse(error: OSError) -> None:
        raise error

    walked = os.walk(folder, onerror=refuse)
    return sorted(Path(place, name) for place, _, names in walked for name in names)


def check_target(path: str | Path) -> Path:
    """Where a file will be written, links resolved; DataError if it cannot be written there.

    Call it before long work, so that a wrong path fails within a second.
    """
    # Without resolving, the rename would replace a link, and even /dev/null, by a file.
    target = Path(os.path.realpath(path))
    _check_above(target, path)
    if not target.parent.is_dir():
        raise DataError(f"{path}: the folder {target.parent} does not exist; create it first")
    if target.exists() and not target.is_file():
        raise DataError(f"{path}: not a regular file; not overwritten")
    if not os.access(target.parent, os.W_OK):
        raise DataError(f"{path}: no permission to write in the folder {target.parent}")
    return target


def _check_above(path: Path, given: str | Path) -> None:
    """DataError if what should be a folder above the path is a file."""
    there = next((each for each in path.parents if os.path.exists(each)), None)  # noqa: PTH110
    if there is not None and not there.is_dir():
        raise DataError(f"{given}: {there} is a file, not a folder; give another path")


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """An open file that replaces `path` when the block ends without an error.

    A process killed at any moment leaves the old file; an error also removes the temporary
    one. Text is UTF-8 with "\\n" on every system. Raises DataError if `path` cannot be a file;
    the OSError of a full disk names `path`.
    """
    target = check_target(path)
    _remove_stale(target)
    temporary = _beside(target)
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        # Not tempfile: its files are private, and correcting that needs the umask, which can only
        # be read by setting it, for all threads. "x" creates the file with the user's rights.
        with temporary.open(mode.replace("w", "x"), encoding=encoding, newline=newline) as file:
            if target.exists():  # a file that was private stays private
                shutil.copymode(target, temporary)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        # A failed write names no file, and the temporary name means nothing to the user.
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Inside, no other process of this machine holds the folder, which is made if need be.

    Raises DataError, naming what the other process does, if one holds it. A process that is killed
    holds nothing. Does nothing where the system has no such locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{folder}: another process is {what} into this folder. Wait for it, or give "
                "another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


@contextlib.contextmanager
def atomic_folder(
    path: Path, *, replaceable: str, is_own: Callable[[str], bool] | None = None
) -> Iterator[Path]:
    """A new folder that replaces `path` when the block ends without an error.

    An existing folder is replaced only if it is empty or contains a file named `replaceable`,
    so that a wrong path never deletes a user's other files. Of an existing folder, files for
    whose paths in it ("1_Pooling/config.json") `is_own` is false are kept; by default all are
    replaced. The working directory is refused: whoever is in it would be in a deleted folder.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir() and path == Path(os.path.realpath("")):
        raise DataError(f"{path}: the working directory cannot be replaced; save to a folder in it")
    if path.exists() and not path.is_dir():
        raise DataError(f"{path}: exists and is not a folder; give another path")
    if path.is_dir() and any(path.iterdir()) and not (path / replaceable).is_file():
        raise DataError(
            f"{path}: not empty and contains no {replaceable}; not overwritten; give a new folder"
        )
    _check_above(path, path)
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        temporary.mkdir()
    except OSError as error:  # the temporary name means nothing to the user
        error.filename = str(path)
        raise
    try:
        yield temporary
        if is_own is not None and path.is_dir():
            _keep(path, temporary, is_own)
        _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _keep(old: Path, new: Path, is_own: Callable[[str], bool]) -> None:
    """Links of files that are not ours; copies where the file system has no links."""
    for place, folders, names in os.walk(old):
        inside = Path(place).relative_to(old)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        if not folders and not names:  # an empty folder of the user's
            (new / inside).mkdir(parents=True, exist_ok=True)
        for name in (*names, *links):
            target = new / inside / name
            if not is_own((inside / name).as_posix()) and not os.path.lexists(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(str(old / inside / name), str(target))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)


def _beside(path: Path) -> Path:
    """A new hidden name in the same folder: a rename is atomic only within a file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _replace_folder(new: Path, path: Path) -> None:
    """Two renames; a process killed between them leaves the complete old folder as .old."""
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


def _remove_stale(target: Path) -> None:
    """Remove what killed processes left of this file or folder, once nobody writes to it."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.????????.tmp"):
        with contextlib.suppress(OSError):  # another process may remove it, too
            if time.time() - left.stat().st_mtime < STALE_S:
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: it is on disk only once its folder is."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # always on Windows, whose NTFS logs renames itself; elsewhere an unreadable folder
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
