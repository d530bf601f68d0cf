"""What a person sees of a run: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any

LINES = 10  # of a stage, where stderr is not a terminal


class Progress:
    """Shows steps, loss, speed, padding, share of the matmul peak and time left on stderr."""

    def __init__(self, name: str, total: int, *, first: int = 0, shown: bool = True) -> None:
        self.name, self.total, self.first = name, total, first
        self.shown, self.began, self.printed = shown, time.perf_counter(), first
        self.bar: Any = None
        self.task: Any = None
        if shown and sys.stderr.isatty():
            self._open()

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.bar.add_task(self.name, total=self.total, completed=self.first, words="")
        self.bar.start()

    def step(self, number: int) -> None:
        """A step is done."""
        if self.bar is not None:
            self.bar.update(self.task, completed=number)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """New figures, as the trainer logs them."""
        if not self.shown:
            return
        scores = {k: v for k, v in values.items() if k.startswith("eval_")}
        if scores:
            shown = ", ".join(f"{k.removeprefix('eval_')} {v:.4f}" for k, v in scores.items())
            self._print(f"{self.name}, step {step} of {self.total}: {shown}")
        if "loss" not in values:
            return
        words = described(values)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, words=words)
        elif step - self.printed >= self.total / LINES or step == self.total:
            self.printed = step
            self._print(f"{self.name}, step {step} of {self.total}: {words}{self._left(step)}")

    def _print(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            with contextlib.suppress(OSError):
                print(line, file=sys.stderr, flush=True)

    def _left(self, step: int) -> str:
        seconds = time.perf_counter() - self.began
        left = seconds / max(step - self.first, 1) * (self.total - step)
        return f", {left / 60:.0f} min left" if left >= 60 else f", {left:.0f} s left"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def described(values: Mapping[str, float]) -> str:
    """Figures of the loop in words: "loss 1.234, 850 tokens/s, padding 12 %, MFU 38 %"."""
    parts = [f"loss {values['loss']:.4f}"]
    if "tokens_per_s" in values:
        parts.append(f"{values['tokens_per_s']:,.0f} tokens/s")
        parts.append(f"padding {100 * values['padding']:.0f} %")
        parts.append(f"MFU {100 * values['mfu']:.0f} %")
    if values.get("duplicates"):
        parts.append(f"{values['duplicates']:.1f} equal documents a batch")
    return ", ".join(parts)
