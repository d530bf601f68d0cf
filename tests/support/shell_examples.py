"""Examples written for a shell, run without a new Python for each command of theirs."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

# In place of polyvec on PATH: notes down its arguments and its standard input.
RECORDER = """#!/bin/bash
number=$(ls "$CALLS" | wc -l)
mkdir "$CALLS/$number"
cat > "$CALLS/$number/stdin"
printf '%s\\0' "$@" > "$CALLS/$number/arguments"
"""


@dataclass(frozen=True)
class Call:
    """One call of polyvec in an example."""

    arguments: list[str]
    stdin: bytes


def polyvec_calls(command: str, *, folder: Path, work: Path) -> list[Call]:
    """The calls of polyvec that bash makes for this command, in order; all else is done.

    `folder` is the command's working directory, `work` an empty directory for the recorder. For
    examples that read nothing of what polyvec prints or writes.
    """
    program, calls = work / "bin" / "polyvec", work / "calls"
    program.parent.mkdir()
    calls.mkdir()
    program.write_text(RECORDER)
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "CALLS": str(calls)},
        stdin=subprocess.DEVNULL,
        check=True,
    )
    recorded = sorted(calls.iterdir(), key=lambda each: int(each.name))
    return [Call(_arguments(each), (each / "stdin").read_bytes()) for each in recorded]


def _arguments(call: Path) -> list[str]:
    return (call / "arguments").read_bytes().decode().split("\0")[:-1]
