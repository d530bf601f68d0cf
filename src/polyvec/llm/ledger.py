"""The ledger on disk: a JSON line for each run, up to date at any moment of the run."""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from polyvec.llm.answers import Usage
from polyvec.storage.files import check_target

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOM = 512  # bytes that a line may grow while it is rewritten in place


@contextlib.contextmanager
def ledger_line(
    path: str | Path, usage: Usage, *, model: str, identity: str
) -> Iterator[Callable[[], None]]:
    """A new line of the file, and the function that brings it up to date with `usage`.

    It is written at once, rewritten in place, and closed with the state "done", "interrupted" or
    "failed"; the line of a killed process stays "running", with its last numbers. Several
    processes may share a file. Raises DataError if the file cannot be written.
    """
    line = _Line(check_target(path))
    began, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")

    def write(state: str = "running") -> None:
        line.write(
            {
                "date": started,
                "model": model,
                "identity": identity,
                "state": state,
                "prompts": usage.prompts,
                "cached": usage.cached,
                "prompt_tokens": usage.prompt_tokens,
                "new_tokens": usage.new_tokens,
                "seconds": round(time.perf_counter() - began, 3),
                "problems": usage.problems,
                "prompt_price": usage.prompt_price,
                "new_price": usage.new_price,
                "cost": usage.cost,
            }
        )

    state = "failed"
    write()
    try:
        yield write
        state = "done"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        write(state)


class _Line:
    """A line in a file that others append to; spaces before its end are room for rewriting."""

    def __init__(self, path: Path) -> None:
        self.path, self.run = path, uuid.uuid4().hex
        self.at: int | None = None
        self.size = 0

    def write(self, facts: dict[str, object]) -> None:
        text = json.dumps({"run": self.run, **facts}).encode()
        self.path.touch()
        with self.path.open("r+b", buffering=0) as file:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            if self.at is None or len(text) >= self.size or not self._is_there(file):
                self._append(file, len(text))
            assert self.at is not None
            file.seek(self.at)
            file.write(text.ljust(self.size - 1) + b"\n")

    def _is_there(self, file: IO[bytes]) -> bool:
        """False if somebody edited the file, so that the line is elsewhere or gone."""
        assert self.at is not None
        file.seek(self.at)
        line = file.read(self.size)
        return line.startswith(f'{{"run": "{self.run}"'.encode()) and line.endswith(b"\n")

    def _append(self, file: IO[bytes], size: int) -> None:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
                end += 1
        self.at, self.size = end, size + ROOM


def summary(usage: Usage, num_rows: int) -> str:
    """The ledger in one line for a person."""
    asked = usage.prompts - usage.cached
    parts = [f"{num_rows} rows", f"{asked} asked, {usage.cached} from the cache"]
    speed = f" ({usage.new_tokens / usage.seconds:.0f} tokens/s)" if usage.new_tokens else ""
    parts.append(f"{usage.prompt_tokens:,} prompt and {usage.new_tokens:,} new tokens{speed}")
    if usage.cost is not None:
        parts.append(f"cost {usage.cost:.6g}")
    if usage.problems:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(usage.problems.items()))
        parts.append(f"problems: {counts}")
    return "; ".join(parts)
