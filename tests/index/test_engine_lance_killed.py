"""kill -9 at any moment of writing: what was acknowledged is there, and nothing is half there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lancedb")


def killed(folder, kills):
    script = Path(__file__).with_name("killing_writes.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(kills)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return json.loads(done.stdout)


@pytest.mark.medium
def test_20_kills(tmp_path):
    counts = killed(tmp_path / "index", 20)
    assert counts["kills"] == 20 and counts["writes"] > 100
    assert counts["kept in flight"] + counts["lost in flight"] > 5, "the kills met no write"
    assert min(counts[kind] for kind in ("add", "update", "delete", "compact")) > 5


@pytest.mark.slow
def test_200_kills(tmp_path):
    counts = killed(tmp_path / "index", 200)
    assert counts["kills"] == 200 and counts["writes"] > 1000
    # Of the writes that were killed; most of those that are kept had yet to be compacted.
    assert counts["lost in flight"] > 20 and counts["kept in flight"] > 5
