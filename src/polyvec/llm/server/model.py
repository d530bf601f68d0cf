"""A server that speaks the OpenAI API as a language model."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvec.errors import AnswerWarning, GenerationError, InputError, SettingsError
from polyvec.llm.answers import Answer, Completion, GenerationSettings
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.prompts import Prompt, is_chat
from polyvec.llm.server.access import access_error, only_model
from polyvec.llm.server.address import check_url, find_key
from polyvec.llm.server.batches import BatchJob
from polyvec.llm.server.bodies import PATHS, Dialect, Endpoint, check_setting, tokens_guess
from polyvec.llm.server.failures import RequestError
from polyvec.llm.server.limits import RateLimiter
from polyvec.llm.server.pump import Emit, each, stream
from polyvec.llm.server.replies import Reply, read_reply
from polyvec.llm.server.requests import Requester
from polyvec.llm.server.scores import LOGPROBS, choice_probabilities

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Row = tuple[int, Completion]


class ServerLanguageModel(LanguageModel):
    """A model behind a URL: vLLM, llama.cpp, Ollama, LM Studio, OpenAI and what is like them.

    Chats go to /chat/completions. A plain prompt goes to /completions, which continues it
    (vLLM, llama.cpp and LM Studio as it is, Ollama inside the model's template); a server or
    model without that endpoint (404, 405, or a 400 that says so to the first one) gets this and
    all later ones as a chat of one user message. `endpoint` "chat" or "completions" decides it
    before. What a server is found to take (that, max_completion_tokens for max_tokens, n) is in
    `dialect`.

    The first prompt is sent alone: if there is no server, no access or no such model, nothing
    else is sent and GenerationError says so. Later, a prompt whose last attempt failed gets a
    completion with `error`; 429, 408, 409, 5xx, timeouts, broken connections and replies that
    are not JSON are tried again, after the wait that the server asks for or a growing one.
    `retries` counts these by cause.

    model: its name; None takes the only one that the server lists.
    api_key: else the environment's OPENAI_API_KEY; servers in the own network may have none.
    requests_per_minute, tokens_per_minute: limits that are never exceeded; a request reckons
        with max_new_tokens until it is answered.
    timeout_s: for one attempt, of which there are `max_retries` + 1.
    max_wait_s: a server that asks to wait longer is not waited for.
    give_up_after: prompts in a row that fail because of the server, after which the rest are not
        sent but get that error; None to go on.
    schema_attempts: how often an answer is drawn until it is of the schema; at temperature 0 the
        same may come again.
    omit: settings that are not sent, for servers that refuse them; the server's own then count.
    extra_body: more of the request's body, such as {"top_k": 20}.
    batch_file: uses the batch API (OpenAI's: half the price, within 24 hours) and keeps the ids of
        its batches in this JSON file: the same call with the same file goes on after the process
        died, or reads the answers again. Plain prompts are chats there, unless `endpoint` says
        otherwise, and max_new_tokens has the name that the server's address suggests.
    batch_poll_s: between two looks at the state of a batch.
    prompt_price, new_price: of a million tokens, for the ledger.

    Ollama drops what is longer than its context (num_ctx) without an error; others refuse it,
    and the completion's error says so.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        endpoint: Endpoint | None = None,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        timeout_s: float = 600.0,
        max_retries: int = 5,
        max_wait_s: float = 60.0,
        give_up_after: int | None = 20,
        schema_attempts: int = 1,
        omit: Collection[str] = (),
        extra_body: Mapping[str, Any] | None = None,
        batch_file: str | Path | None = None,
        batch_poll_s: float = 30.0,
        prompt_price: float | None = None,
        new_price: float | None = None,
    ) -> None:
        super().__init__()
        _at_least_one(concurrency=concurrency, schema_attempts=schema_attempts)
        _at_least_one(give_up_after=1 if give_up_after is None else give_up_after)
        if endpoint is not None and endpoint not in PATHS:
            raise SettingsError(f"endpoint {endpoint!r} must be one of {sorted(PATHS)} or None")
        self.base_url = check_url(base_url)
        self.endpoint = endpoint
        self.concurrency, self.give_up_after = concurrency, give_up_after
        self.schema_attempts = schema_attempts
        self.batch_file = None if batch_file is None else Path(batch_file)
        self.batch_poll_s = batch_poll_s
        if batch_file is not None and schema_attempts > 1:
            raise SettingsError("schema_attempts does nothing with the batch API; leave it at 1")
        self.dialect = Dialect.of(self.base_url, endpoint, frozenset(omit), dict(extra_body or {}))
        self.requester = Requester(
            self.base_url,
            find_key(self.base_url, api_key),
            RateLimiter(requests_per_minute, tokens_per_minute),
            timeout_s=timeout_s,
            max_retries=max_retries,
            max_wait_s=max_wait_s,
        )
        self.usage.prompt_price, self.usage.new_price = prompt_price, new_price
        self._has_answered = False
        self._counts_tokens = True
        self._failed_in_a_row, self._last_failure = 0, ""
        self.model = model or only_model(self.requester)

    def __repr__(self) -> str:
        return f"ServerLanguageModel({self.base_url!r}, {self.model!r})"

    @property
    def identity(self) -> str:
        own = [self.endpoint, sorted(self.dialect.omit), self.dialect.extra]
        name = f"server:{self.base_url}#{self.model}"
        if own == [None, [], {}]:
            return name
        described = json.dumps(own, sort_keys=True, default=str)
        return f"{name}#{hashlib.sha256(described.encode()).hexdigest()[:16]}"

    @property
    def takes_chats(self) -> bool:
        return self.endpoint != "completions"

    @property
    def retries(self) -> dict[str, int]:
        """Requests that were sent again so far, by cause: a status, "timeout", "broken", ..."""
        return dict(self.requester.retries)

    def stream_checked(
        self, prompts: Sequence[Prompt], settings: GenerationSettings
    ) -> Iterator[tuple[int, Completion]]:
        """Completions as they are there; closing the generator cancels what is under way."""
        if not self.takes_chats and any(map(is_chat, prompts)):
            raise InputError("a chat cannot go to endpoint 'completions'; leave `endpoint` out")

        if self.batch_file is not None:
            yield from self._stream_batches(prompts, settings)
            return

        async def produce(emit: Emit[Row]) -> None:
            self._failed_in_a_row = 0
            async with self.requester.client() as client:

                async def ask(number: int) -> None:
                    await emit((number, await self._complete(client, prompts[number], settings)))

                # Alone, so that what concerns all is known, and the dialect, before the others.
                alone = 0 if self._has_answered else min(1, len(prompts))
                for number in range(alone):
                    await ask(number)
                await each(range(alone, len(prompts)), ask, self.concurrency)

        yield from stream(produce, self.concurrency)

    def _stream_batches(
        self, prompts: Sequence[Prompt], settings: GenerationSettings
    ) -> Iterator[Row]:
        """By the batch API; closing the generator leaves the batches as they are."""
        if not prompts:
            return
        # Nothing is learnt from one prompt before the others here.
        dialect = dataclasses.replace(self.dialect, plain=self.endpoint or "chat")
        requests = [dialect.request(self.model, prompt, settings, settings.n) for prompt in prompts]
        assert self.batch_file is not None
        job = BatchJob(self.requester, self.batch_file, requests, settings, self.batch_poll_s)

        async def produce(emit: Emit[Row]) -> None:
            try:
                async with self.requester.client() as client:
                    await job.run(client, emit)
                return
            except RequestError as failure:
                error = failure
            if job.ids:
                error.message += f"; batches that were sent go on, and {job.file} finds them again"
            raise access_error(self.base_url, error)

        yield from stream(produce, self.concurrency)

    async def _complete(
        self, client: "AsyncOpenAI", prompt: Prompt, settings: GenerationSettings
    ) -> Completion:
        """A prompt's n answers, or the error because of which there are none."""
        if self.give_up_after is not None and self._failed_in_a_row >= self.give_up_after:
            return Completion(
                (),
                error=f"{self.model}: not sent, as {self._failed_in_a_row} prompts in a row "
                f"failed; the last one: {self._last_failure}",
            )
        try:
            answers, prompt_tokens = await self._answers(client, prompt, settings)
        except RequestError as failure:
            error = failure
        else:
            return Completion(tuple(answers), prompt_tokens)
        if not self._has_answered and error.concerns_all:
            raise access_error(self.base_url, error)
        self._failed_in_a_row = self._failed_in_a_row + 1 if error.is_outage else 0
        self._last_failure = error.message
        return Completion((), error=f"{self.model}: {error.message}")

    async def _answers(
        self, client: "AsyncOpenAI", prompt: Prompt, settings: GenerationSettings
    ) -> tuple[list[Answer], int]:
        """n answers and the tokens of all prompts that were sent for them; raises RequestError."""
        answers: list[Answer] = []
        prompt_tokens = 0
        while len(answers) < settings.n:
            wanted = settings.n - len(answers) if self.dialect.takes_n else 1
            reply = await self._ask(client, prompt, settings, wanted, len(answers))
            if len(reply.answers) < wanted:
                self.dialect.takes_n = False
            answers += reply.answers
            prompt_tokens += reply.prompt_tokens or 0
        for attempt in range(1, self.schema_attempts):
            for place, answer in enumerate(answers):
                if answer.error is None or answer.finish == "refusal":
                    continue
                self.requester.retries["schema"] += 1
                number = attempt * settings.n + place
                reply = await self._ask(client, prompt, settings, 1, number)
                (new,) = reply.answers
                # What was paid for the rejected one stays in the ledger.
                answers[place] = dataclasses.replace(
                    new, new_tokens=new.new_tokens + answer.new_tokens
                )
                prompt_tokens += reply.prompt_tokens or 0
        return answers, prompt_tokens

    async def _ask(
        self,
        client: "AsyncOpenAI",
        prompt: Prompt,
        settings: GenerationSettings,
        wanted: int,
        number: int,
    ) -> Reply:
        """The reply to a request of `wanted` answers; raises RequestError."""
        found = await self._post(client, prompt, settings, wanted, number)
        reply = read_reply(found, settings, wanted)
        self._has_answered, self._failed_in_a_row = True, 0
        self._count(reply, tokens_guess(prompt, settings, wanted))
        return reply

    async def _post(
        self,
        client: "AsyncOpenAI",
        prompt: Prompt,
        settings: GenerationSettings,
        wanted: int,
        number: int,
        with_logprobs: bool = False,
    ) -> Mapping[str, Any]:
        """The JSON that answers a request, in the way that the server wants it."""
        more = LOGPROBS if with_logprobs else {}
        path, body = self.dialect.request(self.model, prompt, settings, wanted, number, more)
        while True:
            guess = tokens_guess(prompt, settings, wanted)
            try:
                found = await self.requester.post(
                    client, path, body, tokens=guess, is_first=not self._has_answered
                )
                break
            except RequestError as failure:
                has_learnt = self.dialect.learn(failure, body)
                wanted = wanted if self.dialect.takes_n else 1
                again = self.dialect.request(self.model, prompt, settings, wanted, number, more)
                if not has_learnt or again == (path, body):
                    if not self._has_answered:
                        check_setting(failure, body)
                    raise
                path, body = again
        if "prompt" in body and self.dialect.plain is None:
            self.dialect.plain = "completions"
        return found

    def score_checked(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """The probability that the answer begins with each choice, [N, C]; rows sum to 1.

        Each choice must be one token, as the server gives the probabilities of the first token
        only, and only of the likeliest 20. A choice that is not among them counts as 0 if that is
        wrong by at most 0.01; else, and for a prompt that fails, GenerationError names the prompt.
        """
        settings = GenerationSettings(max_new_tokens=1, temperature=1.0)

        async def produce(emit: Emit[tuple[int, list[float]]]) -> None:
            async with self.requester.client() as client:

                async def ask(number: int) -> None:
                    try:
                        found = await self._post(client, prompts[number], settings, 1, 0, True)
                        reply = read_reply(found, settings, 1)
                        probabilities = choice_probabilities(found, choices)
                    except RequestError as failure:
                        message = failure.message
                    else:
                        self._has_answered = True
                        self._count(reply, tokens_guess(prompts[number], settings, 1))
                        self.usage.add(Completion(reply.answers, reply.prompt_tokens or 0))
                        await emit((number, probabilities))
                        return
                    raise GenerationError(f"{self!r}: score: prompts[{number}]: {message}")

                for number in range(min(1, len(prompts))):
                    await ask(number)
                await each(range(1, len(prompts)), ask, self.concurrency)

        found_NC = np.zeros((len(prompts), len(choices)), np.float32)
        for number, probabilities in stream(produce, self.concurrency):
            found_NC[number] = probabilities
        return found_NC

    def _count(self, reply: Reply, guess: int) -> None:
        if reply.prompt_tokens is not None and reply.new_tokens is not None:
            self.requester.limiter.give_back(guess - reply.prompt_tokens - reply.new_tokens)
        elif self._counts_tokens:
            self._counts_tokens = False
            warnings.warn(
                f"{self.base_url} does not say how many tokens it used; the ledger counts 0",
                AnswerWarning,
                stacklevel=2,
            )


def _at_least_one(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise SettingsError(f"{name} {value} must be 1 or more")
