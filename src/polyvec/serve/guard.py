"""What stands before every route: limits of size and time, keys, logs, and no traceback.

The body is read whole before a route sees it, at most so many bytes in at most so many seconds, so
slow clients and endless bodies cost a bounded buffer and no thread.
"""

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from polyvec.serve.errors import AnswerError, answer_of
from polyvec.serve.metrics import Metrics
from polyvec.serve.settings import ServerSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LOG = logging.getLogger("polyvec.serve")
# For probes, which have no key, and the page, which asks for one.
OPEN = frozenset({"/health", "/ready", "/metrics", "/", "/page.css", "/page.js"})
GONE = 499  # nginx's status of a client that hung up, for logs
CHALLENGE = [(b"www-authenticate", b"Bearer")]


class ClientGoneError(Exception):
    """The client hung up; nobody waits for an answer."""


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, number = time.perf_counter(), secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = number
        state: dict[str, Any] = {"status": None}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                spent = f"{1000 * (time.perf_counter() - began):.1f}".encode()
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", number.encode()),
                    (b"x-total-time", spent),
                ]
            await send(message)

        try:
            self._check_key(scope)
            body = await self._body(scope, receive)
            await self.app(scope, _replayed(body, receive), sending)
        except ClientGoneError:
            state["status"] = state["status"] or GONE
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            answer = answer_of(error)
            if answer.status == 500:
                # The message may hold a text.
                LOG.error(json.dumps({"request": number, "error": type(error).__name__}))
            if state["status"] is None:
                await _send(sending, answer)
        finally:
            self._log(scope, state["status"] or 500, time.perf_counter() - began, number)

    def _check_key(self, scope: MutableMapping[str, Any]) -> None:
        if not self._keys or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        # Every key is compared, so that the time says nothing of which came close.
        fits = [hmac.compare_digest(key.strip(), each) for each in self._keys]
        if kind.lower() != b"bearer" or not any(fits):
            self.metrics.rejected.labels("key").inc()
            raise AnswerError(
                401,
                "no valid API key; send the header Authorization: Bearer KEY",
                code="invalid_api_key",
            )

    async def _body(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes:
        limit = self.settings.max_bytes
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            self._refuse_size(limit)
        try:
            async with asyncio.timeout(self.settings.body_timeout):
                return await self._read(receive, limit)
        except TimeoutError:
            self.metrics.rejected.labels("slow").inc()
            raise AnswerError(
                408, f"the request did not arrive within {self.settings.body_timeout:g} s"
            ) from None

    async def _read(self, receive: Receive, limit: int) -> bytes:
        parts, total = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            parts.append(message.get("body", b""))
            total += len(parts[-1])
            if total > limit:
                self._refuse_size(limit)
            if not message.get("more_body"):
                return b"".join(parts)

    def _refuse_size(self, limit: int) -> None:
        self.metrics.rejected.labels("size").inc()
        raise AnswerError(
            413,
            f"the body has more than {limit} bytes; send the texts in several requests",
            code="request_too_large",
        )

    def _log(
        self, scope: MutableMapping[str, Any], status: int, seconds: float, number: str
    ) -> None:
        route = getattr(scope.get("route"), "path", "other")  # never a path that a client made up
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if status == 429:
            self.metrics.rejected.labels("overloaded").inc()
        line = {
            "request": number,
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 1),
            **scope.get("state", {}).get("log", {}),
        }
        LOG.info(json.dumps(line))


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body in one message, then what the connection says, such as that it has ended."""
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def _send(send: Send, answer: AnswerError) -> None:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    if answer.status == 401:
        headers += CHALLENGE
    if answer.status in (408, 413):  # the rest of the body is not waited for
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.content})
