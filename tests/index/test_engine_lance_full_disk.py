"""A disk that is full, of a file system of its own: nothing acknowledged is lost, and the index
takes writes again once there is space."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lancedb")

# In a namespace of its own, whose mounts are gone with the process; root of it may mount.
MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


def on_small_disk(folder, size, command):
    """The command with a file system of `size` mounted on `folder`; skips where none may be."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux) to mount a file system")
    mounting = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh"]
    mounting += [size, str(folder)]
    tried = subprocess.run([*mounting, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no file system may be mounted here: {tried.stderr.strip()}")
    return subprocess.run([*mounting, *command], capture_output=True, text=True)


@pytest.mark.medium
def test_writes_to_a_full_disk(tmp_path):
    script = Path(__file__).with_name("filling_disk.py")
    done = on_small_disk(tmp_path, "8m", [sys.executable, str(script), str(tmp_path), "5"])
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    counts = json.loads(done.stdout)
    assert counts["rounds"] == counts["refused"] == 5
    assert counts["writes"] > 5, "the disk was full before anything was written"
