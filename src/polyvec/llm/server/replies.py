"""Replies of a server as answers; a reply that is none raises RequestError, which says why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyvec.llm.answers import Answer, Finish, GenerationSettings
from polyvec.llm.schema import with_value
from polyvec.llm.server.failures import RequestError

# Names beside OpenAI's are those of text-generation-inference and of proxies before other APIs.
FINISHES: Mapping[str, Finish] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "refusal",
    "refusal": "refusal",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """Answers to one request, and its tokens; None where the server does not count them."""

    answers: tuple[Answer, ...]
    prompt_tokens: int | None
    new_tokens: int | None


def read_reply(body: Mapping[str, Any], settings: GenerationSettings, wanted: int) -> Reply:
    """The first `wanted` answers, fewer if the server gave fewer; RequestError if there is none."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise RequestError(f"the reply has no choices but {choices!r}", "reply")
    usage = body.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    new_tokens = _count(counts.get("completion_tokens"))
    choices = choices[:wanted]
    shares = _shares(new_tokens or 0, len(choices))
    answers = [
        _answer(choice, share, settings) for choice, share in zip(choices, shares, strict=True)
    ]
    return Reply(tuple(answers), _count(counts.get("prompt_tokens")), new_tokens)


def _answer(choice: object, new_tokens: int, settings: GenerationSettings) -> Answer:
    if not isinstance(choice, Mapping):
        raise RequestError(f"a choice of the reply is not an object: {choice!r}", "reply")
    text, is_refused = _text(choice)
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason not in FINISHES:
        raise RequestError(f"finish_reason {reason!r} does not say how the answer ended", "reply")
    finish = "refusal" if is_refused else FINISHES[reason]
    kept = cut_at(text, settings.stop)
    if len(kept) < len(text) and finish == "length":
        finish = "stop"  # at a stop that the server was not told, or does not know
    return with_value(Answer(kept, finish, new_tokens), settings.schema)


def _text(choice: Mapping[str, Any]) -> tuple[str, bool]:
    """The text of a choice of either endpoint, and whether the model declined."""
    if "message" not in choice:
        content: Any = choice.get("text")
        if not isinstance(content, str):
            raise RequestError(f"a choice has no message and no text but {sorted(choice)}", "reply")
        return content, False
    message = choice["message"]
    if not isinstance(message, Mapping):
        raise RequestError(f"the message of the reply is not an object: {message!r}", "reply")
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        return message["refusal"], True
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise RequestError(f"message.content is not a text but {type(content).__name__}", "reply")
    return content or "", False


def cut_at(text: str, stop: tuple[str, ...]) -> str:
    """The text before the first of the stops."""
    places = [place for each in stop if (place := text.find(each)) >= 0]
    return text[: min(places)] if places else text


def _shares(total: int, parts: int) -> list[int]:
    """The total in equal parts, the first ones larger: servers count all choices together."""
    return [total // parts + (number < total % parts) for number in range(parts)]


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
