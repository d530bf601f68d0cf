"""Several processes: the same loss and the same weights as one process with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("processes.py")


def launched(output: Path, processes: int, *options: str) -> tuple[list[float], dict]:
    """Losses and weights of 10 steps."""
    run = [sys.executable, str(SCRIPT), str(output), *options]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        run = [sys.executable, *launcher, str(processes), *run[1:]]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        run, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((output / "losses.json").read_text()), load_file(
        output / "weights.safetensors"
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    found = {}

    def of(*options: str):
        if options not in found:
            found[options] = launched(tmp_path_factory.mktemp("alone"), 1, *options)
        return found[options]

    return of


@pytest.mark.medium
@pytest.mark.parametrize(
    "options", [(), ("--cached",), ("--lora",)], ids=["plain", "cached", "lora"]
)
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path, alone, wrapper, options):
    """Rows have one to three documents, so the processes have different numbers of them."""
    losses, weights = alone(*options)
    more = ("--fsdp",) if wrapper == "fsdp" else ()
    found, others = launched(tmp_path, 2, *options, *more)
    assert len(losses) == 10
    assert len(set(losses)) == 10
    assert found == pytest.approx(losses, abs=1e-6)
    assert set(others) == set(weights)
    stored = load_file(tmp_path / "checkpoint-10" / "model.safetensors")
    for name, each in stored.items():
        assert torch.equal(each, others[name.removeprefix("embedder.")]), name
    if not options:
        assert len(stored) == len(others), "a checkpoint has the whole model"
    for name, each in weights.items():
        torch.testing.assert_close(others[name], each, rtol=0, atol=1e-6, msg=name)
