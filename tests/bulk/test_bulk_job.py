"""Jobs that are killed, shared and damaged end with each row once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bulk_worker import HOW, Hashes

from polyvec.bulk.job import Job
from polyvec.bulk.leases import leased
from polyvec.bulk.plan import DONE, LEASES, MANIFEST, PLAN, agreed_plan, read_plan
from polyvec.bulk.verify import verify
from polyvec.errors import DataError

pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")

WORKER = Path(__file__).with_name("bulk_worker.py")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    rows = [{"id": f"a{n}", "text": f"text {n}"} for n in range(2500)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a_b.jsonl").write_text(lines, "utf-8")
    (folder / "deep" / "c.txt").write_text("".join(f"line {n}\n" for n in range(730)), "utf-8")
    return folder


def ended(source, folder, rows=200, **options):
    plan = agreed_plan(folder, source, HOW, rows)
    made = Job(plan, source, folder, Hashes(), **options).run()
    return plan, made


def contents(folder):
    """Every row of every shard, and the manifest."""
    import pyarrow.parquet as parquet

    found = {}
    for path in sorted(folder.glob("*.parquet")):
        table = parquet.read_table(path)
        found[path.name] = (table["id"].to_pylist(), table["embedding"].to_pylist())
    return found, (folder / MANIFEST).read_bytes()


def test_each_row_is_there_once_under_its_id(source, tmp_path):
    plan, made = ended(source, tmp_path / "out")
    assert made == plan.num_rows == 3230
    found, _ = contents(tmp_path / "out")
    ids = [each for ids, _ in found.values() for each in ids]
    expected = [f"a_b.jsonl:a{n}" for n in range(2500)] + [f"deep/c.txt:{n}" for n in range(730)]
    assert ids == expected
    assert next(iter(found)) == "a__b.jsonl-00000.parquet"
    assert "deep_-c.txt-00003.parquet" in found
    assert not list((tmp_path / "out" / LEASES).iterdir())
    report = verify(tmp_path / "out")
    assert (report.rows, report.shards, report.problems) == (3230, 17, [])
    assert ended(source, tmp_path / "out")[1] == 0


@pytest.mark.medium
def test_killed_processes_that_share_a_job_end_as_one_that_was_not(source, tmp_path):
    ended(source, tmp_path / "whole")
    folder, draw, kills = tmp_path / "killed", random.Random(0), 0
    command = [sys.executable, str(WORKER), str(source), str(folder), "200", "0.15"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [subprocess.Popen(command, env=environment) for _ in range(2)]
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and any(each.poll() is None for each in running):
        time.sleep(draw.uniform(0.2, 0.8))
        place = draw.randrange(2)
        if kills < 10 and (folder / PLAN).exists() and running[place].poll() is None:
            running[place].send_signal(signal.SIGKILL)
            running[place].wait()
            running[place] = subprocess.Popen(command, env=environment)
            kills += 1
    assert [each.wait(1) for each in running] == [0, 0]
    assert kills == 10
    assert contents(folder) == contents(tmp_path / "whole")
    assert verify(folder).problems == []


def test_a_lease_is_had_by_one_and_becomes_stale(tmp_path):
    path = tmp_path / "shard.lease"
    with leased(path) as first, leased(path) as second:
        assert (first, second) == (True, False)
    assert not path.exists()
    path.write_text("elsewhere 1\n")
    with leased(path, stale=60) as ours:
        assert not ours
    os.utime(path, (0, 0))
    with leased(path, stale=60) as ours:
        assert ours


def test_a_lease_that_is_held_stays_fresh(tmp_path):
    path = tmp_path / "shard.lease"
    with leased(path, heartbeat=0.05, stale=0.3):
        time.sleep(0.6)
        with leased(path, stale=0.3) as other:
            assert not other


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "added", "twice", "unsaid"])
def test_verify_notices_damage_and_a_second_run_mends_it(source, tmp_path, damage):
    folder = tmp_path / "out"
    plan, _ = ended(source, folder)
    shard = folder / plan.shards[3].name
    raw = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(raw[:-9])
    elif damage == "changed":
        shard.write_bytes(raw[:500] + bytes([raw[500] ^ 1]) + raw[501:])
    elif damage == "gone":
        shard.unlink()
    elif damage == "added":
        (folder / "other.parquet").write_bytes(raw)
    elif damage == "twice":
        other = folder / plan.shards[4].name
        shard.write_bytes(other.read_bytes())
        for name in (MANIFEST, f"{DONE}/{shard.name}.json"):
            path = folder / name
            said = json.loads(path.read_text())
            rows = said["shards"] if name == MANIFEST else [said]
            wanted = [each for each in rows if each.get("name", shard.name) == shard.name]
            source_of = json.loads((folder / DONE / f"{other.name}.json").read_text())
            wanted[0].update(source_of)
            path.write_text(json.dumps(said))
    elif damage == "unsaid":
        (folder / MANIFEST).unlink()
        with pytest.raises(DataError, match="has not ended"):
            verify(folder)
        return
    problems = verify(folder).problems
    assert len(problems) == 1
    if damage in ("cut", "gone"):
        ended(source, folder)
        assert verify(folder).problems == []


def test_another_job_is_refused_and_changes_nothing(source, tmp_path):
    folder = tmp_path / "out"
    ended(source, folder)
    before = contents(folder)
    for how, rows, says in (
        ({**HOW, "precision": "int8"}, 200, "precision 'float32', not 'int8'"),
        ({**HOW, "model_sha256": "1"}, 200, "model_sha256"),
        (HOW, 100, "200 rows a shard, not 100"),
    ):
        with pytest.raises(DataError, match=says):
            agreed_plan(folder, source, how, rows)
    with (source / "a_b.jsonl").open("a") as file:
        file.write('{"text": "new"}\n')
    with pytest.raises(DataError, match=r"a_b\.jsonl has"):
        agreed_plan(folder, source, HOW, 200)
    assert contents(folder) == before


def test_other_folders_and_plans_are_refused(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"other files \(thesis\.txt\)"):
        agreed_plan(tmp_path / "mine", source, HOW, 200)
    with pytest.raises(DataError, match="no such file"):
        agreed_plan(tmp_path / "new", tmp_path / "absent", HOW, 200)
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match=r"contains no plan\.json"):
        verify(tmp_path)
    agreed_plan(tmp_path / "out", source, HOW, 200)
    raw = (tmp_path / "out" / PLAN).read_text()
    for text in ("{", "[]", raw.replace("a__b.jsonl-00000", "../escaped"), raw[:-1]):
        (tmp_path / "out" / PLAN).write_text(text)
        with pytest.raises(DataError, match="damaged"):
            read_plan(tmp_path / "out")
