"""Errors as answers: OpenAI's object, a status code, and nothing of the server's inside."""

import json
import math
from typing import Any

from pydantic import ValidationError

from polyvec.errors import InputError, PolyvecError
from polyvec.serve.batching import OverloadedError, TooLargeError
from polyvec.serve.reading import TextError

INVALID = "invalid_request_error"
TOO_MANY_TOKENS = "max_tokens_per_request"  # both OpenAI's type and its code


class AnswerError(Exception):
    """An answer that is no success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    @property
    def headers(self) -> dict[str, str]:
        found = {"content-type": "application/json"}
        if self.retry_after is not None:
            found["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        return found

    @property
    def content(self) -> bytes:
        return json.dumps(self.body).encode()


def answer_of(error: Exception) -> AnswerError:
    """The answer to an error of a request. What a user could not cause says nothing of itself."""
    if isinstance(error, AnswerError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, OverloadedError):
        return AnswerError(
            429,
            str(error),
            kind="rate_limit_error",
            code="overloaded",
            retry_after=error.seconds,
        )
    if isinstance(error, TooLargeError):
        return AnswerError(400, str(error), kind=TOO_MANY_TOKENS, code=TOO_MANY_TOKENS)
    if isinstance(error, TextError):
        return AnswerError(400, str(error), param=error.field)
    if isinstance(error, InputError):
        return AnswerError(400, str(error))
    if isinstance(error, PolyvecError):
        return AnswerError(500, "the model has no vector for this request", kind="server_error")
    return AnswerError(500, "the server failed on this request", kind="server_error")


def _invalid(error: ValidationError) -> AnswerError:
    found: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, found["loc"]))[:100]
    message = found["msg"].removeprefix("Value error, ")
    return AnswerError(400, f"{where}: {message}" if where else message, param=where or None)
