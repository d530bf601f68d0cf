"""An event loop in a thread of its own, and a plain generator of what it produces.

So it works inside a loop that runs already (a notebook), and Ctrl-C reaches the caller at once.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
K = TypeVar("K")
Emit = Callable[[T], Awaitable[None]]
POLL_S = 0.2  # on Windows a wait without an end would not notice Ctrl-C
JOIN_S = 10.0


def stream(produce: Callable[[Emit[T]], Coroutine[Any, Any, None]], ahead: int) -> Iterator[T]:
    """What `produce` emits, as it comes; its error is raised after what came before it.

    `produce` runs at most `ahead` items before the caller, so that who stops reading stops
    asking. Closing the generator cancels it and waits until it has cleaned up.
    """
    items: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    started: queue.SimpleQueue[tuple[Any, Any, Any]] = queue.SimpleQueue()

    async def main() -> None:
        room = asyncio.Semaphore(ahead)

        async def emit(item: T) -> None:
            await room.acquire()
            items.put(("item", item))

        started.put((asyncio.get_running_loop(), asyncio.current_task(), room))
        await produce(emit)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            items.put(("error", error))
        items.put(("end", None))

    thread = threading.Thread(target=run, name="polyvec-server", daemon=True)
    thread.start()
    loop, task, room = started.get()
    try:
        while True:
            try:
                kind, item = items.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if kind == "error":
                raise item
            if kind == "end":
                return
            _call(loop, room.release)
            yield item
    finally:
        _call(loop, task.cancel)
        thread.join(JOIN_S)


def result(coroutine: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What a coroutine function returns."""

    async def produce(emit: Emit[T]) -> None:
        await emit(await coroutine())

    (found,) = stream(produce, 1)
    return found


async def each(
    keys: Iterable[K], work: Callable[[K], Coroutine[Any, Any, None]], concurrency: int
) -> None:
    """`work` on every key, so many at once; the first error ends all."""
    left = iter(keys)

    async def worker() -> None:
        for key in left:
            await work(key)

    tasks = [asyncio.create_task(worker()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(function)
