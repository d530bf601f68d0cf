"""Texts of many requests in one pass: a queue that is cut into batches by tokens.

A request is admitted or refused as a whole, by the tokens that wait before it. A batch is formed
when the model is free, never waited for, and holds what takes about `batch_time`, so that nobody
waits for long until it is over. Short requests go first: a request goes before those that arrived
within `patience` times the difference of their work. So a long one neither stalls short ones nor
starves. Requests that have ended (the client hung up, the time is over) leave the queue.

Clients take turns by tokens, whatever each of them has sent: of two, each has half of a batch while
both wait. The order above is that of a client's own requests, and of the first text of each client.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from polyvec.errors import PolyvecError
from polyvec.serve.settings import ServerSettings

WINDOW = 1024  # texts of the queue that one batch is chosen from
# What waits is at most so many batches: where all wait for long, larger ones give more and cost
# little.
WAITING_BATCHES = 8
SMOOTHING = 0.2  # weight of the newest batch in the measured rate


class OverloadedError(PolyvecError):
    """The queue is full, or a request would not be answered in time; try again after `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class TooLargeError(PolyvecError):
    """A request that no empty queue would hold."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request in the queue: what it waits for, and how long each part took, in seconds."""

    answer: "asyncio.Future[list[Any]]"
    results: list[Any]
    missing: int
    arrived: float
    deadline: float
    client: Hashable = None
    queue_s: float = 0.0
    run_s: float = 0.0

    @property
    def ended(self) -> bool:
        return self.answer.done()


@dataclass(eq=False, slots=True)
class Item:
    """A text in the queue. Only texts of equal `key` share a batch."""

    ticket: Ticket
    place: int
    payload: Any
    tokens: int
    key: Any


@dataclass(slots=True)
class Report:
    """Of one batch, for metrics."""

    texts: int
    tokens: int
    seconds: float
    waited: Sequence[float]


@dataclass(eq=False)
class Batcher:
    """The queue of one model. `run` computes the payloads of a batch, in a thread of its own.

    `on_batch` is told of every batch. Used from one event loop.
    """

    run: Callable[[Any, list[Any]], Sequence[Any]]
    settings: ServerSettings
    on_batch: Callable[[Report], None] = lambda report: None
    clock: Callable[[], float] = time.monotonic
    rate: float | None = None  # tokens a second, once it was measured
    queue: list[Item] = field(default_factory=list)
    waiting_tokens: int = 0
    running_tokens: int = 0
    waiting_of: Counter[Hashable] = field(default_factory=Counter)  # tokens, by client
    _work: "asyncio.Task[None] | None" = None

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="polyvec-model")

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait or are computed now."""
        return self.running_tokens + self.waiting_tokens

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch: what takes `batch_time`, or a part of the time of all that waits."""
        most = self.settings.max_batch_tokens
        if self.rate is None:
            return most
        wanted = max(self.rate * self.settings.batch_time, self.waiting_tokens / WAITING_BATCHES)
        return min(most, int(wanted))

    def submit(
        self,
        payloads: Sequence[Any],
        tokens: Sequence[int],
        keys: Sequence[Any],
        timeout: float,
        *,
        client: Hashable = None,
        spent: float = 0.0,
    ) -> Ticket:
        """Put a request's texts in the queue; its `answer` has one result each, in order.

        keys: of each text; those of a batch are equal. client: who asks; without one there is no
        share. spent: seconds of `timeout` that are over.

        Raises OverloadedError if they do not fit into the queue now, or into this client's share of
        it, or would not be answered in `timeout` seconds, TooLargeError if they would not with
        nothing before them either.
        """
        total, waiting = sum(tokens), self.queued_tokens
        limit = self.settings.max_queued_tokens
        most = int(min(limit, timeout * self.rate)) if self.rate else limit
        if total > most:
            # OpenAI's words, by which clients know that fewer texts will do.
            raise TooLargeError(
                f"Requested {total} tokens, max {most} tokens per request"
                + (f" (what is computed in {timeout:g} s)" if most < limit else "")
                + "; send fewer texts"
            )
        wait = self._seconds(waiting)
        if waiting + total > limit:
            raise OverloadedError(f"{waiting} tokens wait, at most {limit} may; try later", wait)
        own, share = self.waiting_of[client], int(self.settings.client_share * most)
        # A request alone may be as large as the queue: what is computed of it makes room, which
        # this client cannot fill.
        if client is not None and own and own + total > share:
            raise OverloadedError(
                f"{own} of your tokens wait, at most {share} of one client may; try later",
                max(self._seconds(own + total - share), 1.0),
            )
        before = self._before(client, total)
        if self._seconds(before + total) > timeout - spent:
            raise OverloadedError(
                f"{before} tokens wait, which would take longer than {timeout:g} s; try later",
                max(wait, 1.0),
            )
        now = self.clock()
        loop = asyncio.get_running_loop()
        ticket = Ticket(
            answer=loop.create_future(),
            results=[None] * len(payloads),
            missing=len(payloads),
            arrived=now,
            deadline=now + timeout - spent,
            client=client,
        )
        if not payloads:
            ticket.answer.set_result([])
            return ticket
        self.queue += [
            Item(ticket, place, payload, count, key)
            for place, (payload, count, key) in enumerate(zip(payloads, tokens, keys, strict=True))
        ]
        self.waiting_tokens += total
        self.waiting_of[client] += total
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._until_empty())
        return ticket

    def close(self) -> None:
        """Ends the thread after what runs now."""
        self._thread.shutdown(wait=True)

    def _before(self, client: Hashable, total: int) -> int:
        """Tokens that are computed before the last of so many new ones of a client.

        Of others, who have their turns meanwhile, at most as many as its own.
        """
        own = self.waiting_of[client] + total
        others = (tokens for each, tokens in self.waiting_of.items() if each != client)
        return self.running_tokens + own - total + sum(min(own, each) for each in others)

    # ---- batches ----------------------------------------------------------------------------

    async def _until_empty(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            now = self.clock()
            waited = [now - item.ticket.arrived for item in batch]
            for item, seconds in zip(batch, waited, strict=True):
                item.ticket.queue_s = max(item.ticket.queue_s, seconds)
            self.running_tokens = sum(item.tokens for item in batch)
            try:
                await loop.run_in_executor(self._thread, self._computed, batch)
            except RuntimeError as error:  # the thread has ended
                for item in batch:
                    item.payload = _Failed(error)
            tokens, self.running_tokens = self.running_tokens, 0
            seconds = self.clock() - now
            if not any(isinstance(item.payload, _Failed) for item in batch):
                self._learn(tokens, seconds)  # an error is no measure of speed
            self.on_batch(Report(len(batch), tokens, seconds, waited))
            for item in batch:
                self._deliver(item, seconds)

    def _next(self) -> list[Item]:
        """The next batch, taken from the queue; what has ended is dropped."""
        self._drop_ended()
        if not self.queue:
            return []
        window = self._window()
        work: dict[Ticket, int] = {}
        for item in window:
            work[item.ticket] = work.get(item.ticket, 0) + item.tokens
        rank = {
            ticket: ticket.arrived + self.settings.patience * self._seconds(tokens)
            for ticket, tokens in work.items()
        }
        window.sort(key=lambda item: rank[item.ticket])
        # By turns: an item comes after as many tokens of its client as of each other. Those that
        # are first of their client keep the order of their ranks, so nobody starves.
        turn: dict[int, int] = {}
        before: Counter[Hashable] = Counter()
        for item in window:
            turn[id(item)] = before[item.ticket.client]
            before[item.ticket.client] += item.tokens
        window.sort(key=lambda item: turn[id(item)])
        chosen: list[Item] = []
        total, most = 0, self.batch_tokens
        for item in window:
            if item.key != window[0].key:
                continue
            if chosen and total + item.tokens > most:
                break
            chosen.append(item)
            total += item.tokens
        taken = set(map(id, chosen))
        self.queue = [item for item in self.queue if id(item) not in taken]
        self._count()
        return chosen

    def _window(self) -> list[Item]:
        """Texts that came first, of all clients equally many."""
        most = max(1, WINDOW // len(self.waiting_of))
        found, taken = [], Counter[Hashable]()
        for item in self.queue:
            if taken[item.ticket.client] < most:
                taken[item.ticket.client] += 1
                found.append(item)
        return found

    def _count(self) -> None:
        """Counts the tokens of the queue anew; clients of whom nothing waits are forgotten."""
        self.waiting_of = Counter()
        for item in self.queue:
            self.waiting_of[item.ticket.client] += item.tokens
        self.waiting_tokens = self.waiting_of.total()

    def _drop_ended(self) -> None:
        """Takes out what nobody waits for, and what will not be there in time."""
        now = self.clock()
        work: dict[Ticket, int] = {}
        for item in self.queue:
            work[item.ticket] = work.get(item.ticket, 0) + item.tokens
        batch = min(self.batch_tokens, self.waiting_tokens)
        for ticket, tokens in work.items():
            # Computed, and then late, it would have been for nothing; it is answered when all of
            # it and of its last batch was computed.
            if not ticket.ended and now + self._seconds(max(tokens, batch)) > ticket.deadline:
                ticket.answer.set_exception(
                    OverloadedError(
                        f"not answered in {now - ticket.arrived:.1f} s; try later",
                        max(1.0, self._seconds(self.queued_tokens)),
                    )
                )
        self.queue = [item for item in self.queue if not item.ticket.ended]
        self._count()

    def _computed(self, batch: Sequence[Item]) -> None:
        """In the model's thread: results, or the error, in place of the payloads.

        A text that fails fails its own request, not those that it shares a batch with.
        """
        try:
            found = self.run(batch[0].key, [item.payload for item in batch])
            for item, result in zip(batch, found, strict=True):
                item.payload = result
        except Exception as error:  # noqa: BLE001 - it is delivered to the request
            tickets = {id(item.ticket): item.ticket for item in batch}
            if len(tickets) == 1:
                for item in batch:
                    item.payload = _Failed(error)
                return
            for ticket in tickets.values():
                self._computed([item for item in batch if item.ticket is ticket])

    def _deliver(self, item: Item, seconds: float) -> None:
        ticket = item.ticket
        if ticket.ended:
            return
        if isinstance(item.payload, _Failed):
            ticket.answer.set_exception(item.payload.error)
            return
        ticket.results[item.place] = item.payload
        ticket.missing -= 1
        ticket.run_s = max(ticket.run_s, seconds)
        if not ticket.missing:
            ticket.answer.set_result(ticket.results)

    # ---- the rate ---------------------------------------------------------------------------

    def _seconds(self, tokens: int) -> float:
        """How long so many tokens take; 0 before anything was measured."""
        return tokens / self.rate if self.rate else 0.0

    def _learn(self, tokens: int, seconds: float) -> None:
        found = tokens / max(seconds, 1e-6)
        # A batch of a few tokens is slow for its size, and says how fast full ones are at least.
        if self.rate is not None and found < self.rate:
            full = min(self.settings.max_batch_tokens, self.rate * self.settings.batch_time)
            if tokens < full / 4:
                return
        self.rate = found if self.rate is None else self.rate + SMOOTHING * (found - self.rate)


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception
