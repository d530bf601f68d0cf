"""Prompts and chats as the tokens that a local model reads, and its tokens as text."""

import functools
import json
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer

from polyvec.embed.inputs.contract import bare, read_contract
from polyvec.errors import InputError
from polyvec.llm.prompts import Prompt, is_chat


class PromptTokens:
    """A tokenizer as a language model uses it.

    A plain prompt is sent as it is, with the tokens that the tokenizer puts before a text (BOS),
    even if the model has a chat template; the names of special tokens in it are these tokens, as
    in transformers. A chat is written by the template, which brings all special tokens itself:
    their names in a message are text, which ends no turn and begins none. If a chat ends with an
    assistant's message, the answer goes on with that message. BOS is never doubled, and EOS is
    never put after a prompt. `name` is the model's, for errors.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer, self.name = tokenizer, name
        self._encoder = bare(tokenizer)
        self.before = read_contract(tokenizer, None, copy=self._encoder).prefix
        added = self._encoder.get_added_tokens_decoder().values()
        # The longest first, as one name may begin another.
        self._specials = sorted((each.content for each in added if each.special), key=len)[::-1]
        self._mark = secrets.token_hex(8)  # no message can hold it by chance or by design

    @property
    def num_before(self) -> int:
        """How many tokens the tokenizer puts before a plain prompt."""
        return len(self.before)

    def of_prompt(self, prompt: Prompt, where: str) -> tuple[int, ...]:
        """The tokens; InputError, saying where, for a chat that the template refuses."""
        if is_chat(prompt):
            return self._of_chat(prompt, where)
        assert isinstance(prompt, str)
        ids = self.of_text(prompt)
        return ids if ids[: len(self.before)] == self.before else (*self.before, *ids)

    def of_text(self, text: str) -> tuple[int, ...]:
        """The tokens of a text alone; InputError for a lone surrogate, which no tokenizer takes."""
        return self.with_offsets(text)[0]

    def with_offsets(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """The tokens of a text alone, and where each is in it, in characters."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"a prompt has a lone surrogate at character {error.start}, which is not valid text"
            ) from None
        found = self._encoder.encode(text, add_special_tokens=False)
        return tuple(found.ids), found.offsets

    def _of_chat(self, chat: Any, where: str) -> tuple[int, ...]:
        """The tokens of a chat; names of special tokens in its messages stay text."""
        specials = self._specials
        names = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
        if not any(names.search(message["content"]) for message in chat):
            return self.of_text(self.chat_text(chat, where))
        hidden = [
            {
                "role": message["role"],
                "content": names.sub(
                    lambda found: f"{self._mark}:{specials.index(found[0])}:{self._mark}",
                    message["content"],
                ),
            }
            for message in chat
        ]
        # What the template itself wrote gets other names, what the messages said its own again.
        text = re.sub(
            rf"{self._mark}:(\d+):{self._mark}|{names.pattern}",
            lambda found: specials[int(found[1])] if found[1] else self._renamed(found[0]),
            self.chat_text(hidden, where),
        )
        return tuple(self._marked_encoder.encode(text, add_special_tokens=False).ids)

    def _renamed(self, name: str) -> str:
        return f"{self._mark}{name}{self._mark}"

    @functools.cached_property
    def _marked_encoder(self) -> Tokenizer:
        """The tokenizer with other names for its special tokens, which no message can spell."""
        return with_names(self._encoder, {name: self._renamed(name) for name in self._specials}.get)

    def chat_text(self, chat: Prompt, where: str = "chat") -> str:
        """A chat as the text that the model was trained with, open for the answer."""
        if not self.tokenizer.chat_template:
            raise InputError(
                f"{where} is a chat, and {self.name} has no chat template; send a plain text"
            )
        messages = [dict(message) for message in chat]  # type: ignore[arg-type]
        goes_on = messages[-1]["role"] == "assistant"
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
            )
        except Exception as error:  # noqa: BLE001 - templates are code of the model's and raise anything
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{where}: {self.name}'s chat template refuses it: {reason}") from None
        return text

    def text(self, ids: Sequence[int]) -> str:
        """Written tokens as text, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def token(self, text: str) -> int | None:
        """The id of an added token, such as "<|im_end|>", by its text."""
        found = self.tokenizer.get_added_vocab().get(text)
        return None if found is None else int(found)


def with_names(encoder: Tokenizer, name: Callable[[str, str], str]) -> Tokenizer:
    """A copy in which each token has the name `name(own, own)`; all ids are the same."""
    settings = json.loads(encoder.to_str())
    for token in settings["added_tokens"]:
        token["content"] = name(token["content"], token["content"])
    model = settings["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {name(own, own): number for own, number in vocab.items()}
    else:  # Unigram: pairs of a piece and its score
        model["vocab"] = [[name(own, own), score] for own, score in vocab]
    if model.get("unk_token"):
        model["unk_token"] = name(model["unk_token"], model["unk_token"])
    return Tokenizer.from_str(json.dumps(settings))
