"""Request bodies: settings under the names of the OpenAI API, as far as a server takes them."""

import re
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from polyvec.errors import GenerationError
from polyvec.llm.answers import GenerationSettings
from polyvec.llm.prompts import Prompt, is_chat
from polyvec.llm.server.address import OPENAI_HOST
from polyvec.llm.server.failures import TOO_LONG, RequestError

Endpoint = Literal["chat", "completions"]
PATHS: Mapping[Endpoint, str] = {"chat": "/chat/completions", "completions": "/completions"}
MAX_STOPS = 4  # OpenAI refuses more; answers are cut at the others on our side
SEED_STEP, SEEDS = 1_000_003, 2**31  # answers asked for one by one: not the next seed's
# Of a model that only chats, OpenAI says 404 ("This is a chat model"), Azure 400.
NO_COMPLETIONS = re.compile(r"chat model|chat/completions|does not work with the", re.IGNORECASE)
ONE_CHOICE = re.compile(r"only one completion|\bn\b.{0,40}\b(1|one)\b", re.IGNORECASE)
MAX_TOKENS, MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"
USE_NEWER = re.compile(rf"\buse\W+{MAX_COMPLETION_TOKENS}", re.IGNORECASE)
SETTINGS = ("temperature", "top_p", "seed", "stop", "n", "response_format", "max_tokens")


@dataclass(slots=True)
class Dialect:
    """What a server takes; changed by what it answers to the first requests, for all later ones.

    plain: the endpoint of prompts that are no chats; None until the first one is answered.
    max_tokens: the name of max_new_tokens. OpenAI's newer models want max_completion_tokens,
        which other servers ignore.
    takes_n: whether it gives several answers to one request.
    top_completions: likeliest tokens that /completions lists; OpenAI allows 5 there, others 20.
    takes_strict: whether it holds answers to any schema that has the form for it.
    """

    plain: Endpoint | None = None
    max_tokens: str = MAX_TOKENS
    takes_n: bool = True
    takes_strict: bool = True
    top_completions: int = 20
    omit: Collection[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        base_url: str,
        endpoint: Endpoint | None,
        omit: Collection[str],
        extra: Mapping[str, Any],
    ) -> "Dialect":
        is_openai = urlsplit(base_url).hostname == OPENAI_HOST
        name = MAX_COMPLETION_TOKENS if is_openai else MAX_TOKENS
        top = 5 if is_openai else 20
        return cls(plain=endpoint, max_tokens=name, omit=omit, extra=extra, top_completions=top)

    def endpoint(self, prompt: Prompt) -> Endpoint:
        return "chat" if is_chat(prompt) else self.plain or "completions"

    def request(
        self,
        model: str,
        prompt: Prompt,
        settings: GenerationSettings,
        n: int = 1,
        number: int = 0,
        more: Mapping[Endpoint, Mapping[str, Any]] | None = None,
    ) -> tuple[str, dict[str, Any]]:
        """Path and body of a request of n answers, the first of which is the prompt's `number`.

        more: what is added, by endpoint.
        """
        endpoint = self.endpoint(prompt)
        if endpoint == "chat":
            max_tokens = self.max_tokens
            asked: dict[str, Any] = {"model": model, "messages": _messages(prompt)}
        else:
            max_tokens = MAX_TOKENS  # the older endpoint never had another name
            asked = {"model": model, "prompt": prompt}
        asked |= {max_tokens: settings.max_new_tokens, "temperature": settings.temperature}
        if settings.temperature:
            asked["seed"] = (settings.seed + SEED_STEP * number) % SEEDS
        if settings.top_p < 1:
            asked["top_p"] = settings.top_p
        if settings.stop:
            asked["stop"] = list(settings.stop[:MAX_STOPS])
        if n > 1:
            asked["n"] = n
        if settings.schema is not None:
            strict = self.takes_strict and is_closed(settings.schema)
            schema = {"name": "answer", "schema": dict(settings.schema), "strict": strict}
            asked["response_format"] = {"type": "json_schema", "json_schema": schema}
        asked |= (more or {}).get(endpoint, {})
        sent = {name: asked[name] for name in asked if name not in self.omit} | dict(self.extra)
        return PATHS[endpoint], sent

    def learn(self, failure: RequestError, body: Mapping[str, Any]) -> bool:
        """Whether a refusal says how to ask instead, which is then done from now on."""
        if "prompt" in body and self.plain is None and _has_no_completions(failure):
            self.plain = "chat"
            return True
        if failure.status not in (400, 422, 500):  # 500: older versions of llama.cpp
            return False
        # vLLM's "'max_tokens' or 'max_completion_tokens' is too large" is of one long prompt.
        if MAX_TOKENS in body and USE_NEWER.search(failure.message):
            self.max_tokens = MAX_COMPLETION_TOKENS
            return True
        if "'strict': True" in str(body.get("response_format")) and (
            failure.param == "response_format" or "response_format" in failure.message
        ):
            self.takes_strict = False
            return True
        if "n" in body and (failure.param == "n" or ONE_CHOICE.search(failure.message)):
            self.takes_n = False
            return True
        return False


def is_closed(schema: object) -> bool:
    """Whether OpenAI takes a schema as strict: no object has other keys, and all are required.

    A looser one is sent as a wish there (vLLM and llama.cpp hold to it all the same).
    """
    if isinstance(schema, Mapping):
        if "properties" in schema or schema.get("type") == "object":
            keys = schema.get("properties", {})
            if schema.get("additionalProperties") is not False:
                return False
            if set(keys) != set(schema.get("required", ())):
                return False
            return all(map(is_closed, keys.values())) and all(
                is_closed(value) for name, value in schema.items() if name != "properties"
            )
        return all(map(is_closed, schema.values()))
    return all(map(is_closed, schema)) if isinstance(schema, list | tuple) else True


def check_setting(failure: RequestError, body: Mapping[str, Any]) -> None:
    """GenerationError if a server refuses a setting, which all prompts share."""
    if failure.code == TOO_LONG:
        return  # of this prompt, though the message may name max_tokens
    name = failure.param.split(".")[0]
    if not name:  # FastAPI's servers name it in the message alone
        quoted = re.findall(r"['\"`](\w+)['\"`]", failure.message)
        name = next((each for each in quoted if each in SETTINGS), "")
    if failure.status in (400, 422) and name in SETTINGS and name in body:
        raise GenerationError(
            f"the server refuses {name}={reprlib.repr(body[name])}: {failure.message}; set "
            f"another value, or leave it to the server with omit=[{name!r}]"
        )


def tokens_guess(prompt: Prompt, settings: GenerationSettings, n: int) -> int:
    """What a request may cost at most, about 4 characters a token: for the limit of tokens."""
    return num_characters(prompt) // 4 + n * settings.max_new_tokens


def num_characters(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(message["content"]) for message in prompt)


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt]


def _has_no_completions(failure: RequestError) -> bool:
    return failure.status in (404, 405, 501) or (
        failure.status == 400 and bool(NO_COMPLETIONS.search(failure.message))
    )
