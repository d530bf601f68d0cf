"""What of the client's requests is not for every server, and how long replies may be.

The client takes more than the key from OPENAI_ variables: organisation, project and headers of
the user's own. They go where OPENAI_API_KEY goes, and nowhere else.
"""

import os
from collections.abc import AsyncIterator
from typing import Any

from polyvec.llm.server.address import is_meant

MAX_REPLY_BYTES = 64 * 2**20  # hundreds of long answers; a server that never ends fills no memory
OPENAI_HEADERS = ("OpenAI-Organization", "OpenAI-Project")
HEADERS_VARIABLE = "OPENAI_CUSTOM_HEADERS"


class ReplyLengthError(Exception):
    """More bytes than a reply has."""


def http_client(base_url: str, key: str, timeout: Any) -> Any:
    """An HTTP client for openai's, with both rules; a batch's file may have any length."""
    import httpx2
    from openai import DefaultAsyncHttpxClient

    class Limited(httpx2.AsyncByteStream):
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for part in self.stream:
                size += len(part)
                if size > MAX_REPLY_BYTES:
                    raise ReplyLengthError(f"the reply is longer than {MAX_REPLY_BYTES:,} bytes")
                yield part

        async def aclose(self) -> None:
            await self.stream.aclose()

    async def keep_private(request: Any) -> None:
        for name in _private_headers():
            request.headers.pop(name, None)
            if name.lower() == "authorization" and request.url.host == httpx2.URL(base_url).host:
                request.headers[name] = f"Bearer {key}"

    async def limit(response: Any) -> None:
        if not response.request.url.path.endswith("/content"):
            response.stream = Limited(response.stream)

    before = [] if is_meant(base_url) else [keep_private]
    hooks: dict[str, list[Any]] = {"request": before, "response": [limit]}
    return DefaultAsyncHttpxClient(timeout=timeout, event_hooks=hooks)


def _private_headers() -> list[str]:
    lines = os.environ.get(HEADERS_VARIABLE, "").split("\n")
    return [*OPENAI_HEADERS, *(line.partition(":")[0].strip() for line in lines if ":" in line)]
