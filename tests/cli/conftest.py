"""Running the program: in this process where that suffices, as a real one where it matters."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from polyvec import Embedder
from polyvec.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit status, standard output and standard error of a run."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny(tiny_bert):
    return Embedder.from_pretrained(tiny_bert)


@pytest.fixture
def run(capsys, monkeypatch):
    """`run(*arguments, stdin=b"")` calls main() in this process."""

    def call(*arguments, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """With polyvec, as it was installed, first on PATH."""
    folder = Path(sys.executable).parent
    if not (folder / "polyvec").exists():
        pytest.skip(f"no polyvec in {folder}")
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def shell(environment, tmp_path):
    """`shell(command)` runs it by bash in the test's folder."""

    def call(command: str, **more) -> Outcome:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env={**environment, **more},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def one_line():
    """Checks that a run ended with this status and one line that begins with polyvec."""

    def check(outcome: Outcome, status: int = 2) -> str:
        assert outcome.status == status, outcome.err
        assert outcome.err.startswith("polyvec")
        assert outcome.err.count("\n") == 1, outcome.err
        return outcome.err

    return check
