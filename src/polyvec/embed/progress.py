"""A progress bar of a long run."""

import contextlib
import sys
from collections.abc import Callable, Iterator

BAR_FROM_TEXTS = 256  # fewer are done before a bar can be read


def _texts(per_second: float) -> str:
    return f"{per_second:.0f} texts/s"


@contextlib.contextmanager
def progress(
    total: int | None,
    wanted: bool | None,
    *,
    name: str = "embedding",
    bar_from: int = BAR_FROM_TEXTS,
    shown: Callable[[float], str] = _texts,
) -> Iterator[Callable[[float], None]]:
    """A bar on stderr with speed and time left; the function that advances it.

    `wanted` None: only where stderr is a terminal and `bar_from` or more, or an unknown number,
    are to be done. `shown` makes the words beside the bar of the items a second.
    """
    many = total is None or total >= bar_from
    if not (many and sys.stderr.isatty() if wanted is None else wanted):
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
    speed.render = lambda task: Text(shown(task.speed or 0))  # type: ignore[method-assign]
    bar = Progress(
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        speed,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(name, total=total)
    with bar:
        yield lambda count: bar.advance(task, count)
