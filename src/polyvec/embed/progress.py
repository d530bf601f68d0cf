"""A progress bar of an encode run."""

import contextlib
import sys
from collections.abc import Callable, Iterator

BAR_FROM_TEXTS = 256  # fewer are done before a bar can be read


@contextlib.contextmanager
def progress(total: int | None, wanted: bool | None) -> Iterator[Callable[[float], None]]:
    """A bar on stderr with texts/s and time left; the function that advances it.

    `wanted` None: only where stderr is a terminal and there are many texts.
    """
    many = total is None or total >= BAR_FROM_TEXTS
    if not (sys.stderr.isatty() and many if wanted is None else wanted):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    speed = TextColumn("", justify="right")
    # Not a format string: the speed is None before the first batch.
    speed.render = lambda task: Text(f"{task.speed or 0:.0f} texts/s")  # type: ignore[method-assign]
    bar = Progress(
        TextColumn("embedding"),
        BarColumn(),
        MofNCompleteColumn(),
        speed,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("embedding", total=total)
    with bar:
        yield lambda count: bar.advance(task, count)
