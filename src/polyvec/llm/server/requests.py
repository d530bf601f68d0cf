"""One request to a server: sent, waited for, and sent again while that may help."""

import asyncio
import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from polyvec.errors import MissingExtraError, SettingsError
from polyvec.llm.server.address import without_key
from polyvec.llm.server.failures import SHOWN, RequestError, message_of, one_line, status_failure
from polyvec.llm.server.limits import RateLimiter
from polyvec.llm.server.traffic import ReplyLengthError, http_client

if TYPE_CHECKING:
    from openai import AsyncOpenAI

FIRST_WAIT_S, LONGEST_BACKOFF_S = 0.5, 30.0
CONNECT_S = 10.0
SILENT = ("connect", "timeout")  # a server that has not answered yet may never do so
UNSURE = ("broken", "timeout", "reply")  # after these the server may have done it all the same


class Requester:
    """Sends requests of one server, all retries included.

    A request is sent at most `max_retries` + 1 times, each waited for `timeout_s` at most, with
    waits of `max_wait_s` at most in between. `retries` counts those sent again, by cause.
    The client's own retries are off, so that these are all.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        limiter: RateLimiter,
        *,
        timeout_s: float = 600.0,
        max_retries: int = 5,
        max_wait_s: float = 60.0,
    ) -> None:
        if timeout_s <= 0 or max_wait_s < 0 or max_retries < 0:
            raise SettingsError(
                f"timeout_s {timeout_s} must be above 0, max_retries {max_retries} and "
                f"max_wait_s {max_wait_s} 0 or more"
            )
        self.base_url, self.limiter = base_url, limiter
        self._key = key
        self.timeout_s, self.max_retries, self.max_wait_s = timeout_s, max_retries, max_wait_s
        self.retries: Counter[str] = Counter()
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
        for attempt in range(1, self.max_retries + 2):
            await self.limiter.wait(tokens)
            outcome = await self._attempt(send, read or _json)
            if not isinstance(outcome, RequestError):
                return outcome
            if not outcome.is_retried or (is_first and outcome.kind in SILENT):
                break
            if not is_repeatable and outcome.kind in UNSURE:
                break
            wait_s = outcome.wait_s or _backoff_s(attempt)
            if wait_s > self.max_wait_s:
                outcome.message += (
                    f" (asks to wait {wait_s:.0f} s, more than max_wait_s {self.max_wait_s:g})"
                )
                break
            if attempt > self.max_retries:
                break
            self.retries[outcome.cause] += 1
            if outcome.status == 429:
                self.limiter.pause(wait_s)  # others would only be refused, too
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.1))
        if attempt > 1:
            outcome.message += f" (after {attempt} attempts)"
        raise outcome

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
            failure = _connection_failure(error.__cause__)
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

    def shown(self, message: str) -> str:
        """A server's message without the key, and not longer than a line should be."""
        return without_key(message, self._key)[:SHOWN]


def _backoff_s(attempt: int) -> float:
    longest = min(FIRST_WAIT_S * 2.0 ** (attempt - 1), LONGEST_BACKOFF_S)
    return longest * random.uniform(0.5, 1.0)


def _connection_failure(cause: BaseException | None) -> RequestError:
    import httpx2

    reason = _reason(cause)
    if isinstance(cause, httpx2.ConnectError):
        return RequestError(f"no server answers ({reason})", "connect", is_retried=True)
    return RequestError(f"the connection broke ({reason})", "broken", is_retried=True)


def _reason(cause: BaseException | None) -> str:
    """The system's own words, which libraries wrap ("All connection attempts failed")."""
    reason = one_line(str(cause)) or type(cause).__name__
    inner = cause
    while inner is not None:
        if isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        if isinstance(inner, OSError) and inner.errno:
            # asyncio's text is the address; getaddrinfo's own numbers are negative.
            known = inner.errno > 0
            reason = (os.strerror(inner.errno) if known else str(inner.strerror)).lower()
        inner = inner.__cause__ or inner.__context__
    return reason


def _error_body(error: Any) -> object:
    """The reply's JSON, else its text."""
    try:
        return json.loads(error.response.text)
    except ValueError:
        return error.response.text


def _json(response: Any) -> Any:
    """The reply's JSON object; a RequestError for anything else, and for errors of status 200.

    What is not JSON was cut off or is a proxy's page, so it is asked for again.
    """
    kind = response.headers.get("content-type", "no content type").split(";")[0]
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        text = one_line(response.text[:2000]) or "nothing"
        return RequestError(f"the reply is not JSON but {kind}: {text}", "reply", is_retried=True)
    if not isinstance(body, dict):
        return RequestError(f"the reply is not a JSON object but {type(body).__name__}", "reply")
    if body.get("error") and "choices" not in body:
        status = body["error"].get("code") if isinstance(body["error"], dict) else None
        if isinstance(status, int) and 400 <= status < 600:
            return status_failure(status, body, response.headers)
        return RequestError(f"an error with status 200: {message_of(body)}", "reply")
    return body


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise MissingExtraError("openai", "llm", "a language model behind a URL") from None
    return openai
