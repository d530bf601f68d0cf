"""polyvec embed into a folder, polyvec verify, and polyvec serve, as commands."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest


def polyvec(*arguments):
    command = [sys.executable, "-m", "polyvec", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.medium
def test_a_folder_is_embedded_verified_and_damage_is_told(tmp_path, tiny_bert):
    pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    (tmp_path / "texts.txt").write_text("".join(f"text {n}\n" for n in range(50)), "utf-8")
    job = ("embed", tmp_path / "texts.txt", "-o", f"{tmp_path}/out/", "--model", tiny_bert)
    done = polyvec(*job, "--shard-rows", "20")
    assert done.returncode == 0, done.stderr
    assert "50 x 32, float32, in 3 shards; 50 rows here" in done.stderr
    done = polyvec("verify", tmp_path / "out")
    assert (done.returncode, "whole; 50 x 32 in 3 shards" in done.stdout) == (0, True)
    (tmp_path / "out" / "texts.txt-00001.parquet").unlink()
    done = polyvec("verify", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "texts.txt-00001.parquet: missing\n")
    assert "1 problem;" in done.stderr
    done = polyvec(*job, "--shard-rows", "20")
    assert "20 rows here" in done.stderr
    done = polyvec(*job, "--shard-rows", "10")
    assert (done.returncode, "20 rows a shard, not 10" in done.stderr) == (2, True)


@pytest.mark.medium
def test_serve_says_where_it_is_and_ends_on_a_signal(tiny_bert):
    pytest.importorskip("fastapi", reason="needs the extra 'serve'")
    command = [sys.executable, "-m", "polyvec", "serve", "--port", "0", f"tiny={tiny_bert}"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = next(line for line in server.stderr if line.startswith("listening on "))
        address = address.split()[2].rstrip(";")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{address}/ready", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        request = urllib.request.Request(
            f"{address}/v1/embeddings", json.dumps({"input": "a cat"}).encode()
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)
        assert found["model"] == "tiny"
        assert len(found["data"][0]["embedding"]) == 32
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
    with_taken_port = [*command[:-1], "tiny=/absent"]
    with_taken_port[with_taken_port.index("0")] = "99999"
    done = subprocess.run(
        with_taken_port, capture_output=True, text=True, env=os.environ, timeout=60, check=False
    )
    assert (done.returncode, "not a port" in done.stderr) == (2, True)
