"""Texts that have no vector yet, asked of an API: several requests at once, each reply kept.

N texts, E numbers a vector.
"""

import asyncio
import math
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from polyvec.errors import ServiceError, ServiceWarning
from polyvec.llm.server.failures import TOO_LONG, RequestError
from polyvec.llm.server.pump import Emit, stream
from polyvec.services.batches import Budget, at_most, batches, estimate
from polyvec.services.client import Client
from polyvec.services.shapes import Asked, Reply
from polyvec.services.store import VectorStore

if TYPE_CHECKING:
    import httpx2

Row = tuple[range, np.ndarray]


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked for: texts, the keys under which vectors are kept, the numbers in errors.

    told: hears of each reply, as soon as it is kept.
    """

    texts: Sequence[str]
    keys: Sequence[str]
    indices: Sequence[int]
    asked: Asked
    batch_size: int | None
    told: Callable[[int, Reply], None]


class Fetcher:
    """Asks one model of one provider. The first request is sent alone, until one was answered."""

    def __init__(
        self, client: Client, store: VectorStore, budget: Budget, name: str, concurrency: int
    ) -> None:
        self.client, self.store, self.budget = client, store, budget
        self.name, self.concurrency = name, concurrency
        self.has_answered = False
        self._most = client.provider.max_texts  # fewer where the server refuses so many
        self._warned = False
        self._lock = threading.Lock()

    def fetch(self, work: Work) -> Iterator[Row]:
        """Places in `work.texts` and their vectors, as they come.

        Raises ServiceError after the requests under way are answered and kept. Closing the
        generator cancels them.
        """

        async def produce(emit: Emit[Row]) -> None:
            self.budget.start()
            self.client.is_ending = False
            queue = deque(
                batches(
                    work.texts,
                    max_texts=min(self._most, work.batch_size or self._most),
                    max_tokens=self.client.provider.max_tokens,
                )
            )
            failures: list[Exception] = []
            async with self.client.http() as http:

                async def worker(is_alone: bool = False) -> None:
                    while queue and not failures and not (is_alone and self.has_answered):
                        try:
                            found = await self._one(http, queue, work)
                        except ServiceError as error:
                            self.client.is_ending = True
                            failures.append(error)
                            return
                        if found is not None:
                            await emit(found)

                await worker(is_alone=True)
                await asyncio.gather(*(worker() for _ in range(self.concurrency)))
            if failures:
                raise failures[0]

        with self._lock:  # of threads that share a model, one asks at a time
            try:
                yield from stream(produce, self.concurrency)
            finally:
                self.store.sync()

    async def _one(self, http: "httpx2.AsyncClient", queue: deque[range], work: Work) -> Row | None:
        """The next batch's vectors; None if it was put back in halves. Raises ServiceError."""
        rows = queue.popleft()
        if len(rows) > self._most:
            queue.extendleft(reversed(_parts(rows, self._most)))
            return None
        texts = [work.texts[row] for row in rows]
        reserved = sum(map(at_most, texts))
        if not self.budget.reserve(reserved):
            await self._wait(rows, queue, work)
            return None
        spent = 0
        try:
            reply = await self.client.embed(
                http,
                work.asked,
                texts,
                tokens=sum(map(estimate, texts)),
                is_first=not self.has_answered,
            )
            spent = sum(map(estimate, texts)) if reply.tokens is None else reply.tokens
        except RequestError as failure:
            error = failure
        else:
            self._check(reply, work.asked)
            self.store.put([work.keys[row] for row in rows], reply.vectors_NE)
            self.has_answered = True
            self._warn_of(reply)
            work.told(len(rows), reply)
            return rows, reply.vectors_NE
        finally:
            self.budget.settle(reserved, spent)
        if error.code == TOO_LONG and len(rows) > 1:
            self._most = math.ceil(len(rows) / 2)
            queue.appendleft(rows)
            return None
        self._most = self.client.provider.max_texts
        raise self.client.error(error, f"{self.name}: {_named(rows, work.indices)}")

    async def _wait(self, rows: range, queue: deque[range], work: Work) -> None:
        """For room in the budget: until others are settled, else with half as many texts."""
        if self.budget.reserved:
            queue.appendleft(rows)
            await self.budget.wait()
        elif len(rows) > 1:
            queue.extendleft(reversed(_parts(rows, math.ceil(len(rows) / 2))))
        else:
            left = self.budget.limit - self.budget.spent
            raise ServiceError(
                f"{self.name}: stopped before the budget is exceeded: {self.budget.spent:,} "
                f"tokens spent, {left:,.0f} left, and {_named(rows, work.indices)} may take "
                f"{at_most(work.texts[rows[0]]):,}; what was paid for is kept, so that the same "
                "run with more max_cost or max_tokens pays for the rest only"
            )

    def _check(self, reply: Reply, asked: Asked) -> None:
        """Raises ServiceError for vectors of another model, or another width, than before."""
        facts = self.store.facts
        width = int(reply.vectors_NE.shape[1])
        if asked.dimensions not in (None, width):
            raise ServiceError(
                f"{self.name}: dimensions {asked.dimensions} were asked for, and vectors have "
                f"{width}: the model takes no dimensions; use truncate_dim instead"
            )
        if not facts:
            self.store.remember({"dimension": width, "model": reply.model})
            return
        if (facts.get("dimension"), facts.get("model")) != (width, reply.model):
            where = "" if self.store.folder is None else f", or delete {self.store.folder}"
            raise ServiceError(
                f"{self.name}: answered by {reply.model!r} with {width} dimensions, before by "
                f"{facts.get('model')!r} with {facts.get('dimension')}; vectors of two models "
                f"cannot be compared: embed all again with another cache{where}"
            )

    def _warn_of(self, reply: Reply) -> None:
        if reply.tokens is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name} does not say how many tokens it counts; the ledger has 0 for them, "
                "and a budget reckons with an estimate",
                ServiceWarning,
                stacklevel=2,
            )


def _parts(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _named(rows: range, indices: Sequence[int]) -> str:
    """The first and last index of a batch, for errors."""
    first, last = indices[rows[0]], indices[rows[-1]]
    return f"inputs[{first}]" if len(rows) == 1 else f"inputs[{first}] to inputs[{last}]"
