"""Requests to one provider's API: keys, one attempt, its failures. Retries are `Retrying`'s."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from polyvec.errors import MissingExtraError, ServiceError
from polyvec.llm.server.address import (
    NO_KEY,
    check_key,
    check_url,
    find_key,
    is_meant,
    is_own,
    key_variable,
)
from polyvec.llm.server.failures import TOO_LONG, RequestError, status_failure
from polyvec.llm.server.limits import RateLimiter
from polyvec.llm.server.retries import CONNECT_S, Retrying, connection_failure, json_object
from polyvec.services.providers import Provider
from polyvec.services.shapes import SHAPES, Asked, Reply
from polyvec.services.signing import Credentials, region_from_environment, signed

if TYPE_CHECKING:
    import httpx2

MAX_REPLY_BYTES = 256 * 2**20  # 2048 vectors of 4096 numbers as text take 180 MB
# What servers say of too many texts or tokens: "array too long", "batch size is invalid, it should
# not be larger than 10", "at most 100 requests", "max 300000 tokens per request", "must have less
# than 512 tokens" (TEI), "5002 tokens, the model reads 64" (polyvec serve).
LARGER = re.compile(
    r"too (many|large|long)|larger than|at most|max(imum)?\b|exceed|less than \d+ tokens"
    r"|the model reads|context.?(length|size|window)",
    re.IGNORECASE,
)


class Client(Retrying):
    """One provider at one address.

    base_url: else what the provider's variable names, else the provider's own.
    """

    def __init__(
        self,
        provider: Provider,
        base_url: str | None,
        api_key: str | None,
        limiter: RateLimiter,
        **limits: Any,
    ) -> None:
        import os

        _httpx()
        self.provider = provider
        account = provider.account
        named = base_url or os.environ.get(account.url_variable, "").strip() or provider.url
        self.region = ""
        if provider.auth == "sigv4":
            self.region = region_from_environment()
            named = named.replace("{region}", self.region)
        url = check_url(named)
        self.credentials: Credentials | None = None
        if provider.auth != "sigv4":
            key = find_key(url, api_key, account)
        else:
            key = (api_key or os.environ.get(account.key_variables[0], "")).strip()
            if key and (api_key or is_meant(url, account)):
                check_key(key, account.key_variables[0])
            else:
                self.credentials = Credentials.from_environment()
                key = self.credentials.secret_key
        super().__init__(url, key, limiter, **limits)

    @property
    def is_own(self) -> bool:
        """Whether the provider itself answers, and not a proxy or a server of the same shape."""
        return is_own(self.base_url, self.provider.account)

    @contextlib.asynccontextmanager
    async def http(self) -> "AsyncIterator[httpx2.AsyncClient]":
        """Connections, closed at the end; of one event loop."""
        httpx2 = _httpx()
        timeout = httpx2.Timeout(self.timeout_s, connect=min(CONNECT_S, self.timeout_s))
        # A redirect could take the key and the texts to another host.
        async with httpx2.AsyncClient(timeout=timeout, follow_redirects=False) as http:
            yield http

    async def embed(
        self,
        http: "httpx2.AsyncClient",
        asked: Asked,
        texts: Sequence[str],
        *,
        tokens: int = 0,
        is_first: bool = False,
    ) -> Reply:
        """The vectors of one request; raises RequestError.

        tokens, is_first: as in `repeat`.
        """
        write, read = SHAPES[self.provider.shape]
        path, body = write(self.provider, asked, texts)
        content = json.dumps(body).encode()

        async def attempt() -> RequestError | Reply:
            # Signed anew each time: a signature is good for five minutes.
            found = await self._attempt(http, f"{self.base_url}{path}", content)
            if isinstance(found, RequestError):
                return found
            try:
                return read(found, len(texts))
            except RequestError as failure:  # what would be paid for again
                failure.message = self.shown(failure.message)
                return failure

        reply: Reply = await self.repeat(attempt, tokens=tokens, is_first=is_first)
        return reply

    async def _attempt(
        self, http: "httpx2.AsyncClient", url: str, content: bytes
    ) -> "RequestError | Mapping[str, Any]":
        httpx2 = _httpx()
        try:
            # The client's timeouts are for each read; a server that drips bytes would never end.
            async with asyncio.timeout(self.timeout_s):
                response = await _read(http, url, content, self._headers(url, content))
        except (TimeoutError, httpx2.TimeoutException):
            failure = RequestError(
                f"no reply within {self.timeout_s:g} s", "timeout", is_retried=True
            )
        except httpx2.TransportError as error:
            failure = connection_failure(error)
        except RequestError as error:
            failure = error
        else:
            found: RequestError | Mapping[str, Any] = (
                json_object(response) if response.is_success else _refusal(response)
            )
            if not isinstance(found, RequestError):
                return found
            failure = found
        failure.message = self.shown(failure.message)
        return failure

    def _headers(self, url: str, content: bytes) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if self.credentials is not None:
            return signed(
                "POST",
                url,
                content,
                headers,
                self.credentials,
                region=self.region,
                service="bedrock",
            )
        if self._key == NO_KEY:
            return headers
        if self.provider.auth in ("bearer", "sigv4"):
            return {**headers, "authorization": f"Bearer {self._key}"}
        return {**headers, self.provider.auth: self._key}

    def error(self, failure: RequestError, what: str) -> ServiceError:
        """The failure for a person, with what to do about it."""
        account, hint = self.provider.account, ""
        if failure.kind == "connect":
            hint = "; check the address" if self.is_own else "; start it or check the address"
        elif failure.kind == "timeout":
            hint = "; if it is only slow, give it a longer timeout_s"
        elif failure.status in (401, 403) and self.credentials is not None:
            hint = "; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION"
        elif failure.status in (401, 403):
            bearer = self.provider.auth == "sigv4"
            name = account.key_variable if bearer else key_variable(self.base_url, account)
            hint = f"; check {name}, or pass another api_key"
        elif failure.status in (404, 405):
            hint = "; check the model's name and the address"
        elif failure.code == TOO_LONG:
            hint = "; split it, or cut it, before it is embedded"
        host = urlsplit(self.base_url).netloc
        return ServiceError(f"{what} ({host}): {failure.message.rstrip('.')}{hint}")


def _refusal(response: "httpx2.Response") -> RequestError:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = {"message": response.text}
    failure = status_failure(
        response.status_code,
        body,
        response.headers,
        longer=LARGER,
        too_long="too much for one request",
    )
    if failure.wait_s is None and failure.is_retried:
        failure.wait_s = _google_delay_s(body)
    return failure


def _google_delay_s(body: Any) -> float | None:
    """The wait that Google asks for in place of Retry-After: details of google.rpc.RetryInfo."""
    try:
        details = body["error"]["details"]
        delay = next(each["retryDelay"] for each in details if "retryDelay" in each)
        return float(delay.removesuffix("s"))
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        return None


async def _read(
    http: "httpx2.AsyncClient", url: str, content: bytes, headers: Mapping[str, str]
) -> "httpx2.Response":
    """The whole response; RequestError for one that would fill the memory."""
    httpx2 = _httpx()
    async with http.stream("POST", url, content=content, headers=headers) as response:
        data = bytearray()
        async for part in response.aiter_bytes():
            data += part
            if len(data) > MAX_REPLY_BYTES:
                raise RequestError(f"the reply is longer than {MAX_REPLY_BYTES:,} bytes", "reply")
    plain = [
        (name, value)
        for name, value in response.headers.multi_items()
        if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
    ]
    return httpx2.Response(response.status_code, headers=plain, content=bytes(data))


def _httpx() -> Any:
    try:
        import httpx2
    except ImportError:
        raise MissingExtraError("httpx2", "services", "a model behind an API") from None
    return httpx2
