"""A server that speaks the OpenAI API as a language model."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.errors import GenerationError, InputError, SettingsError
from polyvec.llm.answers import Completion, GenerationSettings
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.prompts import Prompt, is_chat
from polyvec.llm.server.access import access_error, only_model
from polyvec.llm.server.address import check_url, find_key
from polyvec.llm.server.asker import Asker
from polyvec.llm.server.batches import BatchJob
from polyvec.llm.server.bodies import PATHS, Dialect, Endpoint
from polyvec.llm.server.failures import RequestError
from polyvec.llm.server.limits import RateLimiter
from polyvec.llm.server.pump import Emit, each, stream
from polyvec.llm.server.requests import Requester
from polyvec.llm.server.scores import choice_probabilities

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
    api_key: else the environment's POLYVEC_API_KEY; servers in the own network may have none.
        OPENAI_API_KEY, and all else in variables of that name, goes only to OpenAI and to the
        server of OPENAI_BASE_URL.
    requests_per_minute, tokens_per_minute: limits that are never exceeded; a request reckons
        with max_new_tokens until it is answered.
    timeout_s: for one attempt, of which there are `max_retries` + 1; one, until the server has
        answered anything.
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

    A prompt longer than the context gets an error that says so. Ollama drops a part of it instead
    (beyond num_ctx); a warning says so where it is half or more.
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
        if concurrency < 1:
            raise SettingsError(f"concurrency {concurrency} must be 1 or more")
        if endpoint is not None and endpoint not in PATHS:
            raise SettingsError(f"endpoint {endpoint!r} must be one of {sorted(PATHS)} or None")
        self.base_url = check_url(base_url)
        self.endpoint = endpoint
        self.concurrency = concurrency
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
        self.model = model or only_model(self.requester)
        self._asker = Asker(
            self.requester,
            self.dialect,
            self.model,
            give_up_after=give_up_after,
            schema_attempts=schema_attempts,
        )

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
            self._asker.start()
            async with self.requester.client() as client:

                async def ask(number: int) -> None:
                    completion = await self._asker.complete(client, prompts[number], settings)
                    await emit((number, completion))

                # Alone, so that what concerns all is known, and the dialect, before the others.
                alone = 0 if self._asker.has_answered else min(1, len(prompts))
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

    def score_checked(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> np.ndarray:
        """The probability that the answer begins with each choice, [N, C]; rows sum to 1.

        Each choice must be one token, as the server gives the probabilities of the first token
        only, and only of the likeliest 20. A choice that is not among them counts as 0 if that is
        wrong by at most 0.01; else, and for a prompt that fails, GenerationError names the prompt.
        """
        # Some servers list probabilities as the temperature makes them.
        settings = GenerationSettings(max_new_tokens=1, temperature=1.0)

        async def produce(emit: Emit[tuple[int, list[float]]]) -> None:
            async with self.requester.client() as client:

                async def ask(number: int) -> None:
                    try:
                        reply, found = await self._asker.ask(
                            client, prompts[number], settings, with_logprobs=True
                        )
                        probabilities = choice_probabilities(
                            found, choices, self.dialect.top_completions
                        )
                    except RequestError as failure:
                        error = failure
                    else:
                        self.usage.prompts += 1
                        self.usage.prompt_tokens += reply.prompt_tokens or 0
                        self.usage.new_tokens += reply.new_tokens or 0
                        await emit((number, probabilities))
                        return
                    if error.concerns_all:
                        raise access_error(self.base_url, error)
                    message = self.requester.shown(error.message)
                    raise GenerationError(f"{self!r}: score: prompts[{number}]: {message}")

                for number in range(min(1, len(prompts))):
                    await ask(number)
                await each(range(1, len(prompts)), ask, self.concurrency)

        found_NC = np.zeros((len(prompts), len(choices)), np.float32)
        for number, probabilities in stream(produce, self.concurrency):
            found_NC[number] = probabilities
        return found_NC
