"""A build that is killed leaves the old index or the new one, and the next build succeeds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Each test starts several processes.
pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def kills(tiny_bert, tmp_path_factory):
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_bert), str(tmp_path_factory.mktemp("kills"))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("start", ["old", "none"])
def test_killed_at_every_step_it_is_the_old_one_until_it_is_the_new(kills, start):
    left = [row[0] for row in kills["step"][start]]
    assert len(left) > 10
    switch = left.index("new")
    assert set(left[:switch]) == {start}
    assert set(left[switch:]) == {"new"}


@pytest.mark.parametrize(("start", "unknown"), [("old", 15), ("none", 20)])
def test_the_next_build_embeds_only_what_was_not_kept(kills, start, unknown):
    embedded = [row[1] for row in kills["step"][start]]
    assert embedded == sorted(embedded, reverse=True)
    # Chunks of 8 are kept, the last one smaller.
    assert sorted(set(embedded), reverse=True) == [*range(unknown, 0, -8), 0]


@pytest.mark.parametrize("start", ["old", "none"])
def test_killed_by_a_signal_at_random_moments(kills, start):
    found = kills["signal"][start]
    assert found["killed"] >= 1, "the delays no longer meet a running build"
    assert {row[0] for row in found["rows"]} <= {start, "new"}
