"""What stands before every route: limits of size and time, keys, names, logs, no traceback.

The body is read whole before a route sees it, at most so many bytes in at most so many seconds, so
slow clients and endless bodies cost a bounded buffer and no thread. Large bodies of all clients
together have a bound, too.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from polyvec.serve.batching import OverloadedError
from polyvec.serve.errors import AnswerError, answer_of
from polyvec.serve.metrics import Metrics
from polyvec.serve.settings import ServerSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LOG = logging.getLogger("polyvec.serve")
# For probes, which have no key, and the page, which asks for one.
OPEN = frozenset(
    ("/health", "/ready", "/metrics", "/", "/page.css", "/page.js", "/docs", "/openapi.json")
)
SMALL = 64 * 1024  # bytes of a body that are not counted among those of large ones
MOST_LARGE = 4  # as many bodies of the greatest size may be held at a time
GONE = 499  # nginx's status of a client that hung up, for logs
HOST = re.compile(r"(\[[^]]*\]|[^:]*)(?::\d*)?")  # and a port
CHALLENGE = [(b"www-authenticate", b"Bearer")]


class ClientGoneError(Exception):
    """The client hung up; nobody waits for an answer."""


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._keys = [key.encode() for key in settings.api_keys]
        self._held = 0  # bytes of large bodies that were not answered yet

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

        # A HEAD is a GET whose content the protocol does not send.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        body = _Body()
        try:
            headers = dict(scope["headers"])
            self._check_host(scope)
            scope["state"]["client"] = self._client(scope, headers)
            self._check_origin(headers)
            await self._read_in_time(body, headers, receive)
            whole, body.content = bytes(body.content), bytearray()
            await self.app(inner, _replayed(whole, receive), sending)
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
            self._held -= body.held
            self._log(inner, state["status"] or 500, time.perf_counter() - began, number)

    def _check_host(self, scope: MutableMapping[str, Any]) -> None:
        """Refuse a name that is not this server's.

        A page may have its own name point at this machine (DNS rebinding), and is then of the same
        origin for a browser. An address cannot be pointed elsewhere, and probes have no name.
        """
        given = [value for name, value in scope["headers"] if name == b"host"]
        if len(given) > 1 or (not given and scope["http_version"] == "1.1"):
            raise AnswerError(400, f"{len(given)} Host headers, expected one", code="host")
        if not self.settings.hosts or not given or "*" in self.settings.hosts:
            return
        name = host_name(given[0].decode("latin-1"))
        if name not in self.settings.hosts and not is_address(name):
            self.metrics.rejected.labels("host").inc()
            raise AnswerError(
                403,
                "the server does not have the name of the Host header; see --allow-host",
                code="host",
            )

    def _client(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> str | None:
        """Who asks: the number of the key, else the address. Raises AnswerError without a key."""
        if not self._keys:
            peer = scope.get("client")
            return peer[0] if peer else None
        if scope["path"] in OPEN or scope["method"] == "OPTIONS":
            return None
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        # Every key is compared, so that the time says nothing of which came close.
        fits = [hmac.compare_digest(key.strip(), each) for each in self._keys]
        if kind.lower() != b"bearer" or not any(fits):
            self.metrics.rejected.labels("key").inc()
            raise AnswerError(
                401,
                "no valid API key; send the header Authorization: Bearer KEY",
                code="invalid_api_key",
            )
        return f"key {fits.index(True)}"

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        """Refuse what a page of another origin makes a browser send.

        CORS only keeps such a page from reading the answer.
        """
        if headers.get(b"sec-fetch-site") not in (b"cross-site", b"same-site"):
            return
        # A link to this server, followed from elsewhere.
        if headers.get(b"sec-fetch-mode") == b"navigate" and b"origin" not in headers:
            return
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin not in self.settings.origins and "*" not in self.settings.origins:
            raise AnswerError(
                403, "pages of other origins may not call; see --allow-origin", code="origin"
            )

    async def _read_in_time(
        self, body: "_Body", headers: dict[bytes, bytes], receive: Receive
    ) -> None:
        limit = self.settings.max_bytes
        if headers.get(b"content-encoding", b"").lower() not in (b"", b"identity"):
            raise AnswerError(415, "the body is compressed; send it as it is")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and (len(length) > 20 or int(length) > limit):
            self._refuse_size(limit)
        try:
            async with asyncio.timeout(self.settings.body_timeout):
                await self._read(body, receive, limit)
        except TimeoutError:
            self.metrics.rejected.labels("slow").inc()
            raise AnswerError(
                408, f"the request did not arrive within {self.settings.body_timeout:g} s"
            ) from None

    async def _read(self, body: "_Body", receive: Receive, limit: int) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part = message.get("body", b"")
            if len(body.content) + len(part) > limit:
                self._refuse_size(limit)
            body.content += part
            if len(body.content) > SMALL:
                self._held += len(body.content) - body.held
                body.held = len(body.content)
                if self._held > max(MOST_LARGE * limit, SMALL):
                    raise OverloadedError("too many large requests arrive; try later", 1.0)
            if not message.get("more_body"):
                return

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


@dataclass(slots=True)
class _Body:
    """A request's body; `held` of its bytes are counted among those of large ones."""

    content: bytearray = field(default_factory=bytearray)
    held: int = 0


def host_name(given: str) -> str:
    """The name or address of a Host header, without its port, in lower case."""
    found = HOST.fullmatch(given)
    return (found[1] if found else given).lower().removesuffix(".")


def is_address(name: str) -> bool:
    """Whether it is an IP address, as a Host header has it."""
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True


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
    # Else it would be chunked, which HTTP/1.0 does not know.
    headers.append((b"content-length", str(len(answer.content)).encode()))
    if answer.status == 401:
        headers += CHALLENGE
    # The rest is not waited for. That of a body which is too large is read past instead: a client
    # that still sends when the connection ends would not see the answer.
    if answer.status == 408:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.content})
