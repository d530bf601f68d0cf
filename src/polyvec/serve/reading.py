"""What is known of texts before they are tokenised: how long they are, and which ids are texts.

A tokenizer needs a hundred bytes and more for each token, for texts that are refused, too. So a
request is read in parts, and one that is certainly too large is not read at all.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.errors import InputError
from polyvec.serve.batching import TooLargeError
from polyvec.serve.settings import ServerSettings

# No language has so long tokens on average. Only blanks and words that are one unknown token reach
# it; they count as too long.
MOST_CHARACTERS_A_TOKEN = 64
PART = 2**17  # characters, or token ids, that are tokenised at a time

Given = str | list[int]
Found = TypeVar("Found")


class TextError(InputError):
    """A text of a request cannot be embedded; `field` is the request's field that holds it."""

    def __init__(self, place: int | None, message: str, field: str = "input") -> None:
        super().__init__(f"{field if place is None else f'{field}[{place}]'}: {message}")
        self.field = field


class Reader:
    """A thread that tokenises. Of each client one part waits for it, so that they take turns."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="polyvec-tokenizer")
        self._turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    async def run(self, client: Hashable, work: Callable[..., Found], *given: Any) -> Found:
        """What the work gives in the thread."""
        turn = self._turns.setdefault(client, asyncio.Lock())
        async with turn:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    def close(self) -> None:
        """Ends the thread after what it does now."""
        self._thread.shutdown(wait=True)


def parts(given: Sequence[Given], *, beside: int = 0) -> Iterator[tuple[int, list[Given]]]:
    """The texts in order, some at a time, with the place of the first.

    beside: characters that are tokenised with each of them.
    """
    first, size = 0, 0
    for place, each in enumerate(given):
        if place > first and size + len(each) + beside > PART:
            yield first, list(given[first:place])
            first, size = place, 0
        size += len(each) + beside
    if len(given) > first:
        yield first, list(given[first:])


def most_characters(max_tokens: int | None, settings: ServerSettings) -> int:
    """No text with more of them can be short enough for the model, and the server."""
    tokens = settings.max_queued_tokens
    return MOST_CHARACTERS_A_TOKEN * (tokens if max_tokens is None else min(tokens, max_tokens))


def check_text(text: str, most: int | None, place: int | None, field: str) -> None:
    """Raises TextError for a text of blanks, or of more than `most` characters."""
    if most is not None and len(text) > most:
        tokens = most // MOST_CHARACTERS_A_TOKEN
        raise TextError(
            place,
            f"{len(text)} characters, at most {tokens} tokens are read; split the text, or ask "
            "for truncate=true",
            field,
        )
    if not text.strip():
        raise TextError(place, "the text is empty; leave it out", field)


def too_large(tokens: int, most: int) -> TooLargeError:
    """The error of a request that has too many tokens, in OpenAI's words."""
    return TooLargeError(
        f"Requested {tokens} tokens, max {most} tokens per request; send fewer texts"
    )


def ids_to_text(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    """The text of a client's tokens, which is again these tokens.

    Raises InputError for ids that the tokenizer does not have, and for such that it would not
    make: they are another tokenizer's, and their text would be other words.
    """
    known = len(tokenizer.hf)
    if max(ids) >= known:
        raise InputError(f"token id {max(ids)} is not one of this model's {known}; {ADVICE}")
    prefix, suffix = tokenizer.contract.prefix, tokenizer.contract.suffix
    own = list(ids)
    # Both are there if the client tokenised as the model does.
    if own[: len(prefix)] == list(prefix):
        own = own[len(prefix) :]
    if suffix and own[-len(suffix) :] == list(suffix):
        own = own[: -len(suffix)]
    text = str(tokenizer.hf.decode(own, skip_special_tokens=True))
    if not np.array_equal(tokenizer.ids_and_spans(text)[0], own):
        raise InputError(f"these token ids are not what the model's tokenizer makes; {ADVICE}")
    return text


ADVICE = (
    "ids of another tokenizer (such as OpenAI's, which LangChain sends unless "
    "check_embedding_ctx_length=False) would be other words: send texts"
)
