"""The server on a port: uvicorn, with limits that it does not have itself."""

import asyncio
import contextlib
import socket
from typing import Any

from polyvec.errors import InputError, MissingExtraError
from polyvec.serve.guard import Guard

try:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    raise MissingExtraError("uvicorn", "serve", "polyvec serve") from None

HEAD_TIMEOUT = 10.0  # seconds until a request's headers are complete
MOST_HEAD_BYTES = 64 * 1024
GRACE = 60  # seconds that accepted requests have after a signal to end


class TimedProtocol(HttpToolsProtocol):
    """Closes a connection whose headers do not arrive, or do not end."""

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start()

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
        self._stop()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(HEAD_TIMEOUT, self._end)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound; InputError if the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
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
        **options,
    )
    return uvicorn.Server(config)


def serve(app: Guard, at: socket.socket) -> None:
    """Answer on a bound socket until a signal ends it."""
    # uvicorn raises the signal again once it has ended; for a server that is no interruption.
    with contextlib.suppress(KeyboardInterrupt):
        server_of(app).run(sockets=[at])
