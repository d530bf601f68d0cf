"""One request to a server: sent, waited for, and sent again while that may help."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from polyvec.errors import MissingExtraError
from polyvec.llm.server.failures import RequestError, status_failure
from polyvec.llm.server.limits import RateLimiter
from polyvec.llm.server.retries import CONNECT_S, Retrying, connection_failure, json_object
from polyvec.llm.server.traffic import ReplyLengthError, http_client

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class Requester(Retrying):
    """Sends requests of one server by openai's client, whose own retries are off."""

    def __init__(self, base_url: str, key: str, limiter: RateLimiter, **limits: Any) -> None:
        super().__init__(base_url, key, limiter, **limits)
        _openai()

    @contextlib.asynccontextmanager
    async def client(self) -> "AsyncIterator[AsyncOpenAI]":
        """The client, closed at the end; of one event loop."""
        import httpx2

        timeout = httpx2.Timeout(self.timeout_s, connect=min(CONNECT_S, self.timeout_s))
        async with _openai().AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key,
            max_retries=0,
            http_client=http_client(self.base_url, self._key, timeout),
        ) as client:
            yield client

    async def get(self, client: "AsyncOpenAI", path: str, *, is_first: bool = True) -> Any:
        """The JSON object at a path; raises RequestError. `is_first` as in `post`."""
        import httpx2

        return await self._send(
            lambda: client.get(path, cast_to=httpx2.Response), is_first=is_first
        )

    async def get_text(self, client: "AsyncOpenAI", path: str) -> str:
        """The text at a path, such as a file's content; raises RequestError."""
        import httpx2

        found = await self._send(
            lambda: client.get(path, cast_to=httpx2.Response), read=lambda response: response.text
        )
        return str(found)

    async def post(
        self,
        client: "AsyncOpenAI",
        path: str,
        body: Mapping[str, Any],
        *,
        tokens: int = 0,
        is_first: bool = False,
        is_repeatable: bool = True,
    ) -> Any:
        """The JSON object that answers a body; raises RequestError, of the last attempt.

        tokens: what it may cost, for the limit.
        is_first: a server that is not there, or does not answer, is waited for once.
        is_repeatable: False if a request whose reply was lost must not be sent again.
        """
        import httpx2

        return await self._send(
            lambda: client.post(path, cast_to=httpx2.Response, body=dict(body)),
            tokens=tokens,
            is_first=is_first,
            is_repeatable=is_repeatable,
        )

    async def upload(self, client: "AsyncOpenAI", name: str, data: bytes) -> Any:
        """What the server says of a file for the batch API; raises RequestError."""

        async def send() -> Any:
            files = client.files.with_raw_response
            return (await files.create(file=(name, data), purpose="batch")).http_response

        return await self._send(send, is_first=True)

    async def _send(
        self,
        send: Callable[[], Awaitable[Any]],
        *,
        read: Callable[[Any], Any] | None = None,
        tokens: int = 0,
        is_first: bool = False,
        is_repeatable: bool = True,
    ) -> Any:
        return await self.repeat(
            lambda: self._attempt(send, read or json_object),
            tokens=tokens,
            is_first=is_first,
            is_repeatable=is_repeatable,
        )

    async def _attempt(
        self, send: Callable[[], Awaitable[Any]], read: Callable[[Any], Any]
    ) -> "RequestError | Any":
        """What is read from a response, or what went wrong, without the key."""
        openai = _openai()
        try:
            # httpx2's timeouts are for each read; a server that drips bytes would never end.
            async with asyncio.timeout(self.timeout_s):
                response = await send()
        except (TimeoutError, openai.APITimeoutError):
            failure = RequestError(
                f"no reply within {self.timeout_s:g} s", "timeout", is_retried=True
            )
        except openai.APIStatusError as error:
            failure = status_failure(error.status_code, _error_body(error), error.response.headers)
        except openai.APIConnectionError as error:
            failure = connection_failure(error.__cause__)
        except ReplyLengthError as error:
            failure = RequestError(str(error), "reply")
        except UnicodeEncodeError:
            failure = RequestError(
                "the prompt has half a surrogate pair, which is no text", "prompt"
            )
        else:
            found = read(response)
            if not isinstance(found, RequestError):
                return found
            failure = found
        # Cut only after the key is out: half a key would not be found.
        failure.message = self.shown(failure.message)
        return failure


def _error_body(error: Any) -> object:
    """The reply's JSON, else its text."""
    try:
        return json.loads(error.response.text)
    except ValueError:
        return error.response.text


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise MissingExtraError("openai", "llm", "a language model behind a URL") from None
    return openai
