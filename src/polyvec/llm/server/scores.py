"""Probabilities of a few answers, from the likeliest first tokens that a server lists."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from polyvec.llm.server.bodies import Endpoint
from polyvec.llm.server.failures import RequestError

TOP = 20  # the most that OpenAI's chats and vLLM's default give
MAX_WRONG = 0.01


def logprobs_asked(top_completions: int) -> Mapping[Endpoint, Mapping[str, Any]]:
    """What is added to a request for the likeliest tokens, by endpoint."""
    return {
        "chat": {"logprobs": True, "top_logprobs": TOP},
        "completions": {"logprobs": top_completions},
    }


def choice_probabilities(
    body: Mapping[str, Any], choices: Sequence[str], top_completions: int = TOP
) -> list[float]:
    """Each choice's part of the probability of all choices, as the first token.

    What is not listed has at most the probability of the last one listed. If that could matter,
    or no choice is listed, RequestError says so.
    """
    listed = _top(body["choices"][0])
    found = [listed.get(choice, 0.0) for choice in choices]
    total = sum(found)
    missing = [choice for choice in choices if choice not in listed]
    if missing:
        # A server may add the token that it drew, which is no bound.
        most = top_completions if "text" in body["choices"][0] else TOP
        bound = sorted(listed.values(), reverse=True)[:most][-1]
        if not total or bound * len(missing) > MAX_WRONG * total:
            shown = ", ".join(repr(token) for token in list(listed)[:5])
            raise RequestError(
                f"{missing[0]!r} is not among the {len(listed)} likeliest first tokens "
                f"({shown}, ...); each choice must be one token, written as the model writes it",
                "reply",
            )
    return [each / total for each in found]


def _top(choice: Mapping[str, Any]) -> dict[str, float]:
    """The likeliest first tokens with their probabilities, in either endpoint's form."""
    found: dict[str, float] = {}
    try:
        logprobs = choice["logprobs"]
        if logprobs.get("content"):
            pairs = [
                (each["token"], each["logprob"]) for each in logprobs["content"][0]["top_logprobs"]
            ]
        else:
            pairs = list(logprobs["top_logprobs"][0].items())
        for token, logprob in pairs:
            found[token] = found.get(token, 0.0) + math.exp(logprob)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError):
        found = {}
    if not found:
        raise RequestError("the server lists no probabilities of tokens (top_logprobs)", "reply")
    return found
