"""Attempts of one request, with waits in between, as long as another may help."""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from polyvec.errors import SettingsError
from polyvec.llm.server.address import without_key
from polyvec.llm.server.failures import SHOWN, RequestError, message_of, one_line, status_failure
from polyvec.llm.server.limits import RateLimiter

FIRST_WAIT_S, LONGEST_BACKOFF_S = 0.5, 30.0
CONNECT_S = 10.0
SILENT = ("connect", "timeout")  # a server that has not answered yet may never do so
UNSURE = ("broken", "timeout", "reply")  # after these the server may have done it all the same


class Retrying:
    """Sends requests of one server, all retries included; subclasses know how to send one.

    A request is sent at most `max_retries` + 1 times, each waited for `timeout_s` at most, with
    waits of `max_wait_s` at most in between. `retries` counts those sent again, by cause.
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
        self.is_ending = False  # then no failure is waited for

    async def repeat(
        self,
        attempt_once: "Callable[[], Awaitable[RequestError | Any]]",
        *,
        tokens: int = 0,
        is_first: bool = False,
        is_repeatable: bool = True,
    ) -> Any:
        """What an attempt gives that is no failure; raises RequestError, of the last one.

        tokens: what it may cost, for the limit.
        is_first: a server that is not there, or does not answer, is waited for once.
        is_repeatable: False if a request whose reply was lost must not be sent again.
        """
        for attempt in range(1, self.max_retries + 2):
            await self.limiter.wait(tokens)
            outcome = await attempt_once()
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
            if attempt > self.max_retries or self.is_ending:
                break
            self.retries[outcome.cause] += 1
            if outcome.status == 429:
                self.limiter.pause(wait_s)  # others would only be refused, too
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.1))
        if attempt > 1:
            outcome.message += f" (after {attempt} attempts)"
        raise outcome

    def shown(self, message: str) -> str:
        """A server's message without the key, and not longer than a line should be."""
        return without_key(message, self._key)[:SHOWN]


def _backoff_s(attempt: int) -> float:
    longest = min(FIRST_WAIT_S * 2.0 ** (attempt - 1), LONGEST_BACKOFF_S)
    return longest * random.uniform(0.5, 1.0)


def connection_failure(cause: BaseException | None) -> RequestError:
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


def json_object(response: Any) -> Any:
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
