"""A progress bar of generation: prompts done, new tokens/s, and what they cost so far."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyvec.llm.answers import Completion, Usage

BAR_FROM_PROMPTS = 4  # fewer are done before a bar can be read


@contextlib.contextmanager
def generation_progress(
    total: int | None, wanted: bool | None, usage: "Usage"
) -> "Iterator[Callable[[Completion], None]]":
    """A bar on stderr; the function that advances it by one completion.

    `wanted` None: only where stderr is a terminal and there are several prompts. `total` None:
    the number of prompts is not known.
    """
    several = total is None or total >= BAR_FROM_PROMPTS
    if not (sys.stderr.isatty() and several if wanted is None else wanted):
        yield lambda completion: None
        return
    import time

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    began, tokens = time.perf_counter(), 0

    def speed(task: object) -> Text:
        cost = "" if usage.cost is None else f", cost {usage.cost:.4f}"
        return Text(f"{tokens / (time.perf_counter() - began):.0f} new tokens/s{cost}")

    column = TextColumn("", justify="right")
    column.render = speed  # type: ignore[method-assign]
    bar = Progress(
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        column,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("generating", total=total)

    def advance(completion: "Completion") -> None:
        nonlocal tokens
        tokens += 0 if completion.cached else sum(a.new_tokens for a in completion.answers)
        bar.advance(task)

    with bar:
        yield advance
