"""Run a recipe of two stages: once in one go, and once killed again and again. See test_resume.py.

Each run is a fork, so that torch is imported once. The parent itself computes nothing.
"""

import os
import signal
import sys
from pathlib import Path

from polyvec.cli import main
from polyvec.train.trainer import StageTrainer

# Where to die: the stage's folder, the step, and whether it is before the batch, after its
# gradient, while a checkpoint is written, or after it has its name.
DEATHS = {
    "1-mntp": [
        ("1-mntp", 1, "training_step"),
        ("1-mntp", 5, "_get_grad_norm"),
        ("1-mntp", 6, "_save_rng_state"),
        ("1-mntp", 6, "_rotate"),
        ("1-mntp", 7, "_get_grad_norm"),
        ("1-mntp", 8, "save_final"),
        ("2-scl", 0, "training_step"),
        ("2-scl", 3, "training_step"),
        ("2-scl", 6, "_save_rng_state"),
        ("2-scl", 8, "trained"),
    ],
    "1-diffcse": [
        ("1-diffcse", 3, "_get_grad_norm"),
        ("1-diffcse", 4, "training_step"),
        ("2-scl", 3, "training_step"),
        ("2-scl", 5, "_get_grad_norm"),
        ("2-scl", 6, "_rotate"),
        ("2-scl", 7, "training_step"),
    ],
}


def dying(stage: str, step: int, method: str) -> None:
    """Make this process kill itself where the method is called."""
    original = getattr(StageTrainer, method)

    def call(self, *args, **kwargs):
        if (self.folder.name, self.state.global_step) == (stage, step):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    setattr(StageTrainer, method, call)


def forked(arguments: list[str], death: tuple[str, int, str] | None = None) -> int:
    """The status of a run; minus the signal that ended it."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if death:
        dying(*death)
    os._exit(main(arguments))


def run(recipe: Path, folder: Path) -> None:
    assert forked(["train", str(recipe), "-o", str(folder / "whole")]) == 0
    arguments = ["train", str(recipe), "-o", str(folder / "killed")]
    (first,) = (each.name for each in (folder / "whole" / "stages").glob("1-*"))
    for death in DEATHS[first]:
        status = forked(arguments, death)
        assert status == -signal.SIGKILL, (death, status)
        arguments = [*arguments[:4], "--resume"]
    assert forked(arguments) == 0


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
