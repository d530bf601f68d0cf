"""Waiting for what a request asked for: while its client is there, and until its time is over."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from polyvec.serve.batching import OverloadedError
from polyvec.serve.guard import ClientGoneError

Found = TypeVar("Found")


async def heard(request: Request, work: Awaitable[Found], timeout: float) -> Found:
    """What the work gives. It is cancelled, which takes it out of its queue, if nobody waits.

    Raises ClientGoneError if the client hangs up, OverloadedError after `timeout` seconds. What a
    thread computes at that moment is computed to its end, for nobody.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGoneError
        raise OverloadedError(f"not answered in {timeout:g} s; try later", 1.0)
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
