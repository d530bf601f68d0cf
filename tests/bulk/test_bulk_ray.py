"""A job on a local Ray cluster of two workers, one of which is killed midway."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from bulk_worker import HOW, Hashes
from test_bulk_job import contents, ended

from polyvec.bulk.plan import DONE, agreed_plan
from polyvec.bulk.verify import verify
from polyvec.interfaces import RunOptions

ray = pytest.importorskip("ray", reason="needs the extra 'scale'")


def workers():
    """Processes of Ray that embed."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if b"ray::" in name and b"MapWorker" in name:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_a_killed_worker_costs_its_shard_and_no_row(tmp_path):
    from polyvec.bulk.on_ray import run_on_ray

    source = tmp_path / "texts.txt"
    source.write_text("".join(f"text {n}\n" for n in range(4000)), "utf-8")
    ended(source, tmp_path / "whole", 100)
    folder = tmp_path / "out"
    plan = agreed_plan(folder, source, HOW, 100)
    here = os.pathsep.join([str(Path(__file__).parent), *os.environ["PYTHONPATH"].split(":")])
    ray.init(
        "local", num_cpus=4, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": here}}
    )
    killed = []

    def kill():
        while len(list((folder / DONE).glob("*.json"))) < 5:
            time.sleep(0.05)
        for number in workers()[:1]:
            os.kill(number, signal.SIGKILL)
            killed.append(number)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    rows = []
    try:
        made = run_on_ray(
            "local",
            plan,
            source,
            folder,
            Hashes(0.1),
            {},
            RunOptions(),
            {},
            rows.append,
            num_actors=2,
        )
    finally:
        ray.shutdown()
    thread.join(1)
    assert killed
    assert made <= sum(rows) == 4000
    assert contents(folder) == contents(tmp_path / "whole")
    assert verify(folder).problems == []
