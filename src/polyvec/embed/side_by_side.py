"""Batches on several threads of the CPU, each computed on one.

Threads that share an operation wait for each other at its end, and a layer has many: two threads
with a batch each do more in the same CPU time.
"""

import contextlib
import contextvars
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

STARTED_S = 10.0  # a thread that has not started by then is not waited for
Item = TypeVar("Item")
Result = TypeVar("Result")


def each_on_one_thread(
    compute: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Generator[Result]:
    """`compute(item)` of each item (one at least), in order, on so many threads at once.

    Context variables are the caller's. The first error ends it: items that wait are left.
    """
    before = torch.get_num_threads()
    threads = min(threads, len(items))
    started = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first call of torch sets the number for all threads
        torch.set_num_threads(1)
        with contextlib.suppress(threading.BrokenBarrierError):
            started.wait(STARTED_S)

    try:
        with ThreadPoolExecutor(threads, "polyvec-encode", begin) as pool:
            try:
                runs = [contextvars.copy_context().run for _ in items]
                futures = [
                    pool.submit(run, compute, item) for run, item in zip(runs, items, strict=True)
                ]
                with contextlib.suppress(threading.BrokenBarrierError):
                    started.wait(STARTED_S)
                # torch gives threads to come the number that any thread asked for last.
                torch.set_num_threads(before)
                for future in futures:
                    yield future.result()
            finally:
                started.abort()
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        torch.set_num_threads(before)
