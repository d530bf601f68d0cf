"""One prompt asked of a server, in the way that the server takes it, until it has its answers."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polyvec.errors import AnswerWarning, SettingsError
from polyvec.llm.answers import Answer, Completion, GenerationSettings
from polyvec.llm.prompts import Prompt
from polyvec.llm.server.access import access_error
from polyvec.llm.server.bodies import Dialect, check_setting, num_characters, tokens_guess
from polyvec.llm.server.failures import RequestError
from polyvec.llm.server.replies import Reply, read_reply
from polyvec.llm.server.requests import Requester
from polyvec.llm.server.scores import logprobs_asked

if TYPE_CHECKING:
    from openai import AsyncOpenAI

LONGEST_TOKEN = 8  # characters on average; prose has 3 to 5


class Asker:
    """Asks prompts of one model, and knows how that has gone so far.

    has_answered: whether any prompt has an answer; until then, what concerns all is an error.
    """

    def __init__(
        self,
        requester: Requester,
        dialect: Dialect,
        model: str,
        *,
        give_up_after: int | None,
        schema_attempts: int,
    ) -> None:
        if schema_attempts < 1 or (give_up_after is not None and give_up_after < 1):
            raise SettingsError(
                f"schema_attempts {schema_attempts} and give_up_after {give_up_after} must be 1 "
                "or more"
            )
        self.requester, self.dialect, self.model = requester, dialect, model
        self.give_up_after, self.schema_attempts = give_up_after, schema_attempts
        self.has_answered = False
        self._failed_in_a_row, self._last_failure = 0, ""
        self._warned: set[str] = set()

    def start(self) -> None:
        """Another call: a server that was given up may be back."""
        self._failed_in_a_row = 0

    async def complete(
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
        if not self.has_answered and (error.concerns_all or error.kind == "timeout"):
            raise access_error(self.requester.base_url, error)
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
            reply, _ = await self.ask(client, prompt, settings, wanted, len(answers))
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
                reply, _ = await self.ask(client, prompt, settings, 1, number)
                (new,) = reply.answers
                # What was paid for the rejected one stays in the ledger.
                answers[place] = dataclasses.replace(
                    new, new_tokens=new.new_tokens + answer.new_tokens
                )
                prompt_tokens += reply.prompt_tokens or 0
        return answers, prompt_tokens

    async def ask(
        self,
        client: "AsyncOpenAI",
        prompt: Prompt,
        settings: GenerationSettings,
        wanted: int = 1,
        number: int = 0,
        *,
        with_logprobs: bool = False,
    ) -> tuple[Reply, Mapping[str, Any]]:
        """The reply to a request of `wanted` answers, and its JSON; raises RequestError.

        number: of the first of these answers among the prompt's.
        """
        found = await self._post(client, prompt, settings, wanted, number, with_logprobs)
        reply = self._read(found, prompt, settings, wanted)
        self.has_answered, self._failed_in_a_row = True, 0
        return reply, found

    def _read(
        self, found: Mapping[str, Any], prompt: Prompt, settings: GenerationSettings, wanted: int
    ) -> Reply:
        """The answers in a reply, whose tokens are counted; raises RequestError."""
        try:
            reply = read_reply(found, settings, wanted)
        except RequestError as failure:
            failure.message = self.requester.shown(failure.message)  # it quotes the reply
            raise
        self._count(reply, prompt, tokens_guess(prompt, settings, wanted))
        return reply

    async def _post(
        self,
        client: "AsyncOpenAI",
        prompt: Prompt,
        settings: GenerationSettings,
        wanted: int,
        number: int,
        with_logprobs: bool,
    ) -> Mapping[str, Any]:
        """The JSON that answers a request, in the way that the server wants it."""
        more = logprobs_asked(self.dialect.top_completions) if with_logprobs else {}
        path, body = self.dialect.request(self.model, prompt, settings, wanted, number, more)
        while True:
            guess = tokens_guess(prompt, settings, wanted)
            try:
                found = await self.requester.post(
                    client, path, body, tokens=guess, is_first=not self.has_answered
                )
                break
            except RequestError as failure:
                has_learnt = self.dialect.learn(failure, body)
                wanted = wanted if self.dialect.takes_n else 1
                again = self.dialect.request(self.model, prompt, settings, wanted, number, more)
                if not has_learnt or again == (path, body):
                    if not self.has_answered:
                        check_setting(failure, body)
                    raise
                path, body = again
        if "prompt" in body and self.dialect.plain is None:
            self.dialect.plain = "completions"
        return found

    def _count(self, reply: Reply, prompt: Prompt, guess: int) -> None:
        if reply.prompt_tokens is None or reply.new_tokens is None:
            self._warn_once("does not say how many tokens it used; the ledger counts 0")
            return
        self.requester.limiter.give_back(guess - reply.prompt_tokens - reply.new_tokens)
        length = num_characters(prompt)
        if length > LONGEST_TOKEN * max(reply.prompt_tokens, 100):
            self._warn_once(
                f"counts only {reply.prompt_tokens} tokens in a prompt of {length} characters, so "
                "it may have dropped a part; give the server a larger context (Ollama: num_ctx)"
            )

    def _warn_once(self, message: str) -> None:
        if message[:20] not in self._warned:
            self._warned.add(message[:20])
            warnings.warn(f"{self.requester.base_url} {message}", AnswerWarning, stacklevel=2)
