"""The server on a port: uvicorn, with limits that it does not have itself."""

import asyncio
import contextlib
import socket
from typing import Any

from polyvec.errors import InputError, MissingExtraError
from polyvec.serve.errors import AnswerError
from polyvec.serve.guard import Guard

try:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    raise MissingExtraError("uvicorn", "serve", "polyvec serve") from None

HEAD_TIMEOUT = 10.0  # seconds until a request's headers are complete
WRITE_TIMEOUT = 30.0  # seconds in which a client reads at least something of its answer
MOST_HEAD_BYTES = 64 * 1024
MOST_CONNECTIONS = 2000
GRACE = 60  # seconds that accepted requests have after a signal to end


class TimedProtocol(HttpToolsProtocol):
    """Closes a connection whose request does not arrive, or whose answer is not read."""

    _arriving: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _unread_bytes = 0
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self._end()
            return
        self._start()
        self._check_reading()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # Still in it after the parser took the data: none of them was body.
        if self._in_head and self._head_bytes > MOST_HEAD_BYTES:
            self._end()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._start()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        # The body of a request that waits for it has the guard's timeout, that of one which is
        # answered already (no key, too large) this one.
        self._start()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        if self._reading is not None:
            self._reading.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in place of uvicorn's plain text."""
        answer = AnswerError(400, "the request is not valid HTTP")
        headers = {**answer.headers, "content-length": len(answer.content), "connection": "close"}
        lines = ["HTTP/1.1 400 Bad Request", *(f"{name}: {headers[name]}" for name in headers)]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + answer.content)
        self.transport.close()

    def _start(self) -> None:
        self._stop()
        self._arriving = self.loop.call_later(HEAD_TIMEOUT, self._late)

    def _stop(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _late(self) -> None:
        # While an answer is being made the client may not be to blame: what it sends behind the
        # request waits here.
        if self.cycle is not None and not self.cycle.response_complete:
            self._start()
        else:
            self._end()

    def _check_reading(self) -> None:
        """End the connection of a client that has read nothing since the last call.

        Closing it would wait for the client, for as long as its machine is there.
        """
        unread = self.transport.get_write_buffer_size()
        if unread and unread >= self._unread_bytes > 0:
            self._end()
            return
        self._unread_bytes = unread
        self._reading = self.loop.call_later(WRITE_TIMEOUT, self._check_reading)

    def _end(self) -> None:
        self.transport.abort()


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound; InputError if the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{host}:{port}: cannot listen there ({reason}); try another port"
        ) from None
    return made


def server_of(app: Guard, **options: Any) -> uvicorn.Server:
    """A server that ends on a signal after it has answered what it accepted."""
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE,
        lifespan="on",
        ws="none",
        **options,
    )
    return uvicorn.Server(config)


def serve(app: Guard, at: socket.socket) -> None:
    """Answer on a bound socket until a signal ends it."""
    # uvicorn raises the signal again once it has ended; for a server that is no interruption.
    with contextlib.suppress(KeyboardInterrupt):
        server_of(app).run(sockets=[at])
