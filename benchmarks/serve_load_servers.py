"""The servers of serve_load.py: each a process of its own on a free port, on cores of its own."""

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

START_S = 120  # until a server answers
SAMPLE_S = 1.0
DEADLINE_S = 2  # that polyvec is given, and by which an answer is good
NEEDED = "infinity_emb"  # of infinity's own environment


@functools.cache
def cores() -> tuple[set[int], set[int]]:
    """The server's and the client's; the same if there is only one.

    Of this process when it began: later it keeps to the client's.
    """
    found = sorted(os.sched_getaffinity(0))
    return (set(found[:-1]), {found[-1]}) if len(found) > 1 else (set(found), set(found))


def commands(model: Path, port: int, infinity: Path | None) -> dict[str, list[str]]:
    """How each server is started."""
    python, at = sys.executable, str(port)
    plain = str(Path(__file__).with_name("serve_plain.py"))
    found = {
        "polyvec": [
            *(python, "-m", "polyvec", "serve", f"all-MiniLM-L6-v2={model}", "--port", at),
            *("--device", "cpu", "--timeout", str(DEADLINE_S)),
        ],
        "plain": [python, plain, str(model), at],
    }
    if infinity is not None:
        found["infinity"] = [
            *(str(infinity / "bin" / NEEDED), "v2", "--model-id", str(model), "--port", at),
            *("--served-model-name", "all-MiniLM-L6-v2", "--url-prefix", "/v1"),
            *("--host", "127.0.0.1", "--engine", "torch", "--device", "cpu"),
            *("--dtype", "float32", "--no-bettertransformer"),
        ]
    return found


class Server:
    """A server that runs while the block does; samples its memory and its CPU time."""

    def __init__(self, name: str, model: Path, folder: Path, infinity: Path | None) -> None:
        self.name, self.port = name, free_port()
        self.command = commands(model, self.port, infinity)[name]
        self.log = folder / f"{name}.log"
        self.samples: list[dict[str, float]] = []
        self._ended = threading.Event()

    def __enter__(self) -> "Server":
        mine, _ = cores()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(len(mine)),
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        pinned = [shutil.which("taskset") or "taskset", "-c", ",".join(map(str, sorted(mine)))]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*pinned, *self.command], stdout=log, stderr=log, env=environment
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        threading.Thread(target=self._sample, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def cpu_s(self) -> float:
        """CPU time of the server's process so far, in user and kernel."""
        spent = psutil.Process(self.process.pid).cpu_times()
        return float(spent.user + spent.system)

    def _wait(self) -> None:
        path = "/ready" if self.name == "polyvec" else "/health"
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.alive:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text()[-2000:]}")

    def _sample(self) -> None:
        process, began = psutil.Process(self.process.pid), time.monotonic()
        while not self._ended.wait(SAMPLE_S):
            try:
                mib = process.memory_info().rss / 2**20
            except psutil.Error:
                return
            self.samples.append({"s": round(time.monotonic() - began, 1), "mib": round(mib, 1)})


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
