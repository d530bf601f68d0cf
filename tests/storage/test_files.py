"""Atomic files and folders: the old or the new, and nothing else left over."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from polyvec.errors import DataError
from polyvec.storage.files import atomic_file, atomic_folder, check_target, files_below


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_rights_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_file(tmp_path / "file") as file:
            file.write(b"x")
        with atomic_folder(tmp_path / "folder", replaceable="x"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_link_is_followed_not_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_text("old")
    (tmp_path / "link").symlink_to("real/x")
    with atomic_file(tmp_path / "link", "w") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "x").read_text() == "new"
    (tmp_path / "folder-link").symlink_to("real")
    with atomic_folder(tmp_path / "folder-link", replaceable="x") as folder:
        (folder / "y").touch()
    assert (tmp_path / "folder-link").is_symlink()
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["y"]


def test_what_is_not_a_regular_file_is_not_overwritten(tmp_path):
    """As root, a rename onto /dev/null would succeed and ruin the machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder"):
        with (
            pytest.raises(DataError, match="not a regular file; not overwritten"),
            atomic_file(path),
        ):
            pass
    with pytest.raises(DataError, match="/dev/null: not a regular file"):
        check_target("/dev/null")
    with pytest.raises(DataError, match=r"the folder .*gone does not exist"):
        check_target(tmp_path / "gone" / "x")


def test_a_folder_that_cannot_be_opened_can_be_written_to(tmp_path, monkeypatch):
    """As on Windows, where os.open of any folder is a PermissionError."""
    real = os.open

    def as_on_windows(path, *arguments, **options):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", as_on_windows)
    with atomic_file(tmp_path / "x") as file:
        file.write(b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


def test_the_umask_is_not_read_by_setting_it(tmp_path, monkeypatch):
    """For a moment it would be 0 in every thread, and their new files open to all."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("os.umask was called"))
    with atomic_file(tmp_path / "x"):
        pass
    with atomic_folder(tmp_path / "y", replaceable="x"):
        pass


def test_text_files_are_utf8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getencoding", lambda: "ascii")
    with atomic_file(tmp_path / "x", "w") as file:
        file.write("é\n")
    assert (tmp_path / "x").read_bytes() == "é\n".encode()


@pytest.fixture
def open_folder():
    """A folder that other users may enter, as they may not enter pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_folder_without_the_right_to_write_is_named(open_folder):
    """Without root's rights, where the tests have them."""
    locked = open_folder / "locked"
    locked.mkdir(mode=0o555)
    code = f"""
import os, sys
from polyvec.storage.files import atomic_file
from polyvec.errors import DataError
from pathlib import Path
if os.getuid() == 0:
    os.setuid(65534)
try:
    with atomic_file(Path({str(locked / "x")!r})):
        sys.exit("written")
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{locked}/x: no permission to write in the folder {locked}\n", (
        done.stderr
    )


@pytest.fixture
def tiny_disk(tmp_path):
    """A real file system of 64 KiB."""
    mount = shutil.which("mount")
    if mount is None or os.getuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_old_file_and_names_the_new(tiny_disk):
    path = tiny_disk / "x"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as caught, atomic_file(path) as file:
        for _ in range(100):
            file.write(b"y" * 4096)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tiny_disk.iterdir()) == [path]


def test_an_error_about_another_file_keeps_that_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "x"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


def test_a_folder_is_replaced_only_if_it_is_of_the_kind(tmp_path):
    folder = tmp_path / "model"
    with atomic_folder(folder, replaceable="config.json") as new:
        (new / "config.json").write_text("1")
    with atomic_folder(folder, replaceable="config.json") as new:
        (new / "config.json").write_text("2")
    assert (folder / "config.json").read_text() == "2"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"not empty and contains no config\.json"):
        atomic_folder(mine, replaceable="config.json").__enter__()
    with pytest.raises(DataError, match="exists and is not a folder"):
        atomic_folder(mine / "thesis.tex", replaceable="config.json").__enter__()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "model"]


def test_an_error_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(folder, replaceable="config.json") as new:
        (new / "config.json").write_text("new")
        raise RuntimeError
    assert (folder / "config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failing_switch_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    rename = Path.rename

    def failing(path, target):
        if path.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space"), atomic_folder(folder, replaceable="config.json"):
        pass
    assert (folder / "config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path):
    old, new = tmp_path / ".x[1].npy.0a1b2c3d.tmp", tmp_path / ".x[1].npy.4e5f6a7b.tmp"
    folder, other = tmp_path / ".x[1].npy.8c9d0e1f.tmp", tmp_path / ".y.npy.0a1b2c3d.tmp"
    for path in (old, new, other):
        path.write_bytes(b"half")
    folder.mkdir()
    (folder / "file").write_bytes(b"half")
    for path in (old, folder, other):
        os.utime(path, (0, 0))
    with atomic_file(tmp_path / "x[1].npy") as file:
        file.write(b"whole")
    # `new` may have a writer, and `other` belongs to another file.
    assert {each.name for each in tmp_path.iterdir()} == {"x[1].npy", new.name, other.name}


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path):
    """Path.rglob leaves it out, and its texts would be missing."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x")
    (tmp_path / "y.txt").write_text("y")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert files_below(tmp_path) == [tmp_path / "a" / "x.txt", tmp_path / "y.txt"]
    with pytest.raises(FileNotFoundError, match="gone"):
        files_below(tmp_path / "gone")
