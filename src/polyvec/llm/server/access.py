"""Whether a server can be asked at all: its models, and errors that concern every prompt."""

from typing import Any

from polyvec.errors import GenerationError
from polyvec.llm.server.address import key_variable
from polyvec.llm.server.failures import RequestError
from polyvec.llm.server.pump import result
from polyvec.llm.server.requests import Requester

SHOWN = 20


def only_model(requester: Requester) -> str:
    """The name of the one model that a server has; GenerationError lists them if it has others."""

    async def ask() -> Any:
        async with requester.client() as client:
            try:
                return await requester.get(client, "/models")
            except RequestError as failure:
                return failure

    found = result(ask)
    if isinstance(found, RequestError):
        if not found.concerns_all:
            found.message += "; /models lists no models, so name one"
        raise access_error(requester.base_url, found)
    listed = found.get("data")
    entries = listed if isinstance(listed, list) else []
    names = sorted(str(one["id"]) for one in entries if isinstance(one, dict) and "id" in one)
    if len(names) != 1:
        shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        raise GenerationError(
            f"{requester.base_url} has {len(names)} models, so `model` must name one. "
            f"Known: {shown or 'none'}"
        )
    return names[0]


def access_error(base_url: str, failure: RequestError) -> GenerationError:
    """What concerns all prompts, and what to do about it."""
    hint = ""
    if failure.kind == "connect":
        hint = "; start it or check the address"
    elif failure.kind == "timeout":
        hint = "; if it is only slow, give it a longer timeout_s (--timeout)"
    elif failure.status in (401, 403):
        hint = f"; check {key_variable(base_url)}, or pass another api_key"
    elif failure.status in (404, 405):
        hint = "; check the model's name and the address"
        if "/v" not in base_url.partition("//")[2]:
            hint += ", which usually ends in /v1"
    return GenerationError(f"{base_url}: {failure.message.rstrip('.')}{hint}")
