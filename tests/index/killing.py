"""Kills builds of an index, step by step and at random; run by test_index_killed.py.

One process loads torch and the model once; each build runs in a fork of it that dies.
Prints JSON: for each kill what was found afterwards and how many texts the next build embedded.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch

from polyvec import Embedder
from polyvec.data.texts import Record
from polyvec.errors import IndexStoreError
from polyvec.index import plain
from polyvec.index.plain import PlainIndex

torch.set_num_threads(1)  # threads do not survive a fork
plain.CHUNK = 8
STEPS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir")
OLD = [Record(str(i), f"text {i}") for i in range(15)]
NEW = [Record(str(i), f"text {i}") for i in range(10, 30)]


def die_at(step: int) -> None:
    """Ends this process, without any clean-up, before its n-th change to the file system."""
    left = [step]

    def wrap(function):
        def counted(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            return function(*args, **kwargs)

        return counted

    for name in STEPS:
        setattr(os, name, wrap(getattr(os, name)))


def build_in_fork(folder: Path, embedder, prepare) -> int:
    pid = os.fork()
    if pid == 0:
        prepare()
        PlainIndex.build(folder, NEW, embedder, show_progress_bar=False)
        os._exit(0)
    return pid


def found(folder: Path, vector_of) -> str:
    """ "old", "new" or "none"; anything else ends the run."""
    try:
        index = PlainIndex.open(folder)
    except IndexStoreError as error:
        assert "contains no index" in str(error), error
        return "none"
    name = {len(OLD): "old", len(NEW): "new"}[len(index)]
    assert index.items == (OLD if name == "old" else NEW)
    np.testing.assert_allclose(
        index.vectors_NE, [vector_of[item.text] for item in index.items], atol=1e-5
    )
    return name


def after(folder: Path, embedder, vector_of) -> tuple[str, int]:
    """What a killed build left, and how many texts a second one had to embed."""
    left = found(folder, vector_of)
    _, report = PlainIndex.build(folder, NEW, embedder, show_progress_bar=False)
    assert found(folder, vector_of) == "new"
    names = sorted(path.name.split("-")[0] for path in folder.iterdir())
    assert names == [".polyvec", "items", "manifest.json", "vectors"], names
    return left, report.num_embedded


def main(model: str, work: Path) -> None:
    embedder = Embedder.from_pretrained(model)
    texts = sorted({record.text for record in OLD + NEW})
    vector_of = dict(zip(texts, embedder.encode(texts), strict=True))
    base = work / "base"
    PlainIndex.build(base, OLD, embedder, show_progress_bar=False)
    out: dict = {"step": {}, "signal": {}}
    for start in ("old", "none"):
        rows, step, status = [], 0, 1
        while status:
            step += 1
            folder = work / f"{start}-{step}"
            if start == "old":
                shutil.copytree(base, folder)
            pid = build_in_fork(folder, embedder, lambda step=step: die_at(step))
            status = os.waitpid(pid, 0)[1]
            assert status in (0, 9 << 8), status
            rows.append(after(folder, embedder, vector_of))
        out["step"][start] = rows
        began = time.perf_counter()
        os.waitpid(build_in_fork(work / f"timing-{start}", embedder, lambda: None), 0)
        seconds, rows, killed = time.perf_counter() - began, [], 0
        for turn in range(8):
            folder = work / f"signal-{start}-{turn}"
            if start == "old":
                shutil.copytree(base, folder)
            pid = build_in_fork(folder, embedder, lambda: None)
            time.sleep(random.Random(turn).uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
            killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
            rows.append(after(folder, embedder, vector_of))
        out["signal"][start] = {"rows": rows, "killed": killed}
    print(json.dumps(out))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
