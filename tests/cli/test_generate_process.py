"""polyvec generate as a real process that is interrupted, terminated and killed."""

import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openai_server import OpenAIServer

pytestmark = pytest.mark.medium

PROCESS = """
import os, sys, time
from polyvec.cli import main
from polyvec.llm import loading
from polyvec.llm.function import FunctionLanguageModel

def rule(prompt):
    if prompt == os.environ.get("DEADLY"):
        os.kill(os.getpid(), 9)
    with open("log", "a") as file:
        file.write(prompt + "\\n")
    time.sleep(float(os.environ.get("SECONDS_EACH", 0)))
    return prompt.upper()

loading.load_language_model = lambda name, **options: FunctionLanguageModel(rule, "rule")
sys.exit(main(sys.argv[1:]))
"""
GENERATE = ("generate", "in.txt", "-o", "out.jsonl", "--cache", "cache", "--ledger", "ledger.jsonl")


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def started(folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *GENERATE],
        cwd=folder,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def prepared(folder, num_rows=40):
    folder.mkdir()
    (folder / "in.txt").write_text("".join(f"row {i}\n" for i in range(num_rows)))
    return folder


def test_a_killed_run_is_resumed_and_nothing_is_asked_twice(tmp_path):
    killed, alone = prepared(tmp_path / "killed"), prepared(tmp_path / "alone")
    (killed / "out.jsonl").write_text("old")
    assert started(killed, DEADLY="row 25").wait() == -9
    assert (killed / "out.jsonl").read_text() == "old"
    (line,) = rows((killed / "ledger.jsonl").read_text())
    assert [line[key] for key in ("state", "prompts", "new_tokens")] == ["running", 25, 50]
    for folder in (killed, alone):
        process = started(folder)
        assert process.wait() == 0, process.stderr.read()
    assert (killed / "out.jsonl").read_bytes() == (alone / "out.jsonl").read_bytes()
    assert (killed / "log").read_text() == (alone / "log").read_text()
    first, second = rows((killed / "ledger.jsonl").read_text())
    assert (second["prompts"], second["cached"], second["state"]) == (40, 25, "done")
    assert first["new_tokens"] + second["new_tokens"] == 80


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_at_any_moment_costs_at_most_the_answer_under_way(tmp_path, end):
    folder = prepared(tmp_path / "x")
    process = started(folder, SECONDS_EACH="0.05")
    until = time.monotonic() + 60
    while not (folder / "log").exists() or len((folder / "log").read_text().splitlines()) < 7:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(end)
    process.wait(30)
    err = process.stderr.read()
    assert not (folder / "out.jsonl").exists()
    (line,) = rows((folder / "ledger.jsonl").read_text())
    if end == signal.SIGKILL:
        assert line["state"] == "running"
    else:
        assert (process.returncode, line["state"]) == (130, "interrupted")
        assert re.fullmatch("polyvec: interrupted.*\n", err)
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    assert line["prompts"] >= 6
    assert started(folder).wait() == 0
    counts = collections.Counter((folder / "log").read_text().splitlines())
    assert sorted(counts.values())[:-1] == [1] * 39 and max(counts.values()) <= 2
    expected = [{"text": f"row {i}", "answer": f"ROW {i}"} for i in range(40)]
    assert rows((folder / "out.jsonl").read_text()) == expected


def test_a_model_that_is_killed_and_resumed_writes_what_it_writes_at_once(
    run, environment, tmp_path, monkeypatch
):
    """Greedy, with other prompts in the batch than without the kill."""
    (tmp_path / "in.txt").write_text("".join(f"{i} little cats sat\n" for i in range(16)))
    arguments = ("generate", "in.txt", "--model", "polyvec/nano-lm", "--plain", "-o", "out.jsonl")
    arguments += ("--max-new-tokens", "10", "--batch-size", "3")
    program = shutil.which("polyvec", path=environment["PATH"])
    killed = subprocess.Popen(
        [program, *arguments, "--cache", "cache"], cwd=tmp_path, env=environment
    )
    until = time.monotonic() + 200
    while sum(path.stat().st_size for path in tmp_path.glob("cache/*/*.jsonl")) < 1000:
        assert killed.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "out.jsonl").exists()
    monkeypatch.chdir(tmp_path)
    written = []
    for folder in ("cache", "none"):
        done = run(*arguments, "--cache", folder)
        assert done.status == 0
        assert ("; 16 asked, 0 from" in done.err) == (folder == "none")
        written.append((tmp_path / "out.jsonl").read_text())
    assert written[0] == written[1]
    answers = [row["answer"] for row in rows(written[0])]
    assert len(answers) == 16 and len(set(answers)) > 3


# ---- a server -----------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch, tmp_path):
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    monkeypatch.setattr("polyvec.llm.server.retries.FIRST_WAIT_S", 0.005)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "POLYVEC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with OpenAIServer() as server:
        yield server


def test_a_server_that_fails_loses_no_row_and_is_asked_again_for_those_alone(run, server):
    plans = ["", "! 429", "! 500 500", "! slow", "! 400 ...", "", "! 429 500"]
    prompts = [f"row {i} {plans[i % len(plans)]}".strip() for i in range(50)]
    stdin = "".join(f"{prompt}\n" for prompt in prompts).encode()
    options = ("--model", f"{server.url}#tiny", "--cache", "cache", "--ledger", "l.jsonl")
    first = run("generate", *options, stdin=stdin)
    found = rows(first.out)
    assert [row["text"] for row in found] == prompts
    failed = [i for i in range(50) if "! 400" in prompts[i]]
    assert [i for i, row in enumerate(found) if "error" in row] == failed
    assert found[1]["answer"] == "answer to row 1"
    assert first.status == 2
    assert f"{len(failed)} of 50 rows have an error and no answer, the first: tiny:" in first.err
    sent = len(server.posts())
    second = run("generate", *options, stdin=stdin)
    assert rows(second.out) == found
    assert len(server.posts()) - sent == len(failed)
    one, two = rows(Path("l.jsonl").read_text())
    assert one["identity"] == one["model"].replace("http", "server:http", 1)
    assert (one["prompts"], two["cached"]) == (50, 50 - len(failed))
    assert one["new_tokens"] > 0 == two["new_tokens"]


def test_a_server_that_is_not_there_is_one_line(run, server, one_line):
    server.die()
    done = run("generate", "--model", f"{server.url}#tiny", "-o", "out.jsonl", stdin=b"a\n")
    assert "start it or check the address" in one_line(done)
    assert not Path("out.jsonl").exists()


def test_a_key_that_is_missing_is_one_line(run, server, one_line):
    done = run("generate", "--model", "https://api.example.com/v1#m", stdin=b"a\n")
    assert "POLYVEC_API_KEY" in one_line(done)
