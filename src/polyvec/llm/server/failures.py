"""What went wrong with one request: what is said about it, and whether asking again may help."""

import email.utils
import html
import math
import re
import time
from collections.abc import Mapping
from typing import Any

SHOWN = 300  # characters of a server's message
# 409: locked; 5xx of the server, of proxies (Cloudflare's 52x) and "overloaded" (529).
NOT_RETRIED_5XX = (501, 505)
# A quota that is used up does not come back within any wait.
USED_UP = ("insufficient_quota", "billing_hard_limit_reached")
TOO_LONG = "context_length_exceeded"  # OpenAI's code, given to the words of others
LONGER = re.compile(
    r"context.?(length|size|window)|maximum context|too many tokens|too long", re.IGNORECASE
)


class RequestError(Exception):
    """One request without an answer.

    kind: "connect" if no server answers, "broken" if a connection broke, "timeout", "status",
        or "reply" for a reply that is not what was asked for.
    is_retried: whether the same request may succeed later; `wait_s` is what the server asks for.
    code, param: what OpenAI's servers say beside the message.
    """

    def __init__(
        self,
        message: str,
        kind: str,
        *,
        status: int | None = None,
        is_retried: bool = False,
        wait_s: float | None = None,
        code: str = "",
        param: str = "",
    ) -> None:
        super().__init__(message)
        self.message, self.kind, self.status = message, kind, status
        self.is_retried, self.wait_s = is_retried, wait_s
        self.code, self.param = code, param

    @property
    def cause(self) -> str:
        """A word for counts: the status, or the kind."""
        return self.kind if self.status is None else str(self.status)

    @property
    def concerns_all(self) -> bool:
        """Whether other prompts would fail likewise: no server, no access, no such model."""
        return self.kind == "connect" or self.status in (401, 403, 404, 405) or self.code in USED_UP

    @property
    def is_outage(self) -> bool:
        """Whether it says more about the server than about the prompt."""
        return self.concerns_all or self.kind in ("broken", "timeout") or self.is_retried


def status_failure(
    status: int,
    body: object,
    headers: Mapping[str, str],
    *,
    longer: re.Pattern[str] = LONGER,
    too_long: str = "the prompt and max_new_tokens exceed the model's context",
) -> RequestError:
    """The failure of a reply whose status is an error.

    longer: the words of an error that means `too_long`, which has the code TOO_LONG.
    """
    details = error_details(body)
    code = str(details.get("code") or details.get("type") or "")
    message = message_of(body)
    if status in (400, 413, 422, 500) and (longer.search(message) or "context" in code):
        return RequestError(
            f"status {status}: {too_long}: {message}", "status", status=status, code=TOO_LONG
        )
    is_retried = (
        status in (408, 409, 429) or (status >= 500 and status not in NOT_RETRIED_5XX)
    ) and code not in USED_UP
    asked = headers.get("x-should-retry")
    return RequestError(
        f"status {status}: {message}",
        "status",
        status=status,
        is_retried=asked == "true" or (is_retried and asked != "false"),
        wait_s=retry_after_s(headers),
        code=code,
        param=str(details.get("param") or ""),
    )


def error_details(body: object) -> Mapping[str, Any]:
    """The object that describes the error: {"error": {...}} or the body itself."""
    inner = body.get("error", body) if isinstance(body, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def message_of(body: object) -> str:
    """What a server says about an error, in one line, whatever form it has."""
    found = body
    for key in ("error", "detail", "message", "msg"):
        if isinstance(found, list) and found:
            found = found[0]  # FastAPI's list of what is wrong with a request
        if isinstance(found, Mapping) and key in found:
            found = found[key]
    return one_line(found) if isinstance(found, str) and found.strip() else "no message"


def one_line(text: str) -> str:
    """The first line of a message; of an HTML page its title."""
    if re.match(r"\s*<(!doctype|html)", text, re.IGNORECASE):
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        text = f"an HTML page{': ' + html.unescape(title[1]).strip() if title else ''}"
    return " ".join(text.strip().splitlines()[0].split()) if text.strip() else ""


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The wait that a server asks for, in seconds; None if it names none that can be read.

    Retry-After is seconds or an HTTP date (RFC 9110, 10.2.3); retry-after-ms is OpenAI's own.
    """
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / divisor
        except ValueError:
            continue
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    if date is None:
        return None
    try:
        return max(email.utils.mktime_tz(date) - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None
