"""Prompts and chats as the tokens that a local model reads, and its tokens as text."""

from collections.abc import Sequence
from typing import Any

from polyvec.embed.inputs.contract import bare, read_contract
from polyvec.errors import InputError
from polyvec.llm.prompts import Prompt, is_chat


class PromptTokens:
    """A tokenizer as a language model uses it.

    A plain prompt is sent as it is, with the tokens that the tokenizer puts before a text (BOS),
    even if the model has a chat template; the names of special tokens in it are these tokens, as
    in transformers. A chat is written by the template, which brings all special tokens itself; if
    it ends with an assistant's message, the answer goes on with that message. BOS is never
    doubled, and EOS is never put after a prompt. `name` is the model's, for errors.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer, self.name = tokenizer, name
        self._encoder = bare(tokenizer)
        self._before = read_contract(tokenizer, None, copy=self._encoder).prefix

    def of_prompt(self, prompt: Prompt, where: str) -> tuple[int, ...]:
        """The tokens; InputError, saying where, for a chat that the template refuses."""
        if is_chat(prompt):
            return self.of_text(self.chat_text(prompt, where))
        assert isinstance(prompt, str)
        ids = self.of_text(prompt)
        return ids if ids[: len(self._before)] == self._before else (*self._before, *ids)

    def of_text(self, text: str) -> tuple[int, ...]:
        """The tokens of a text alone."""
        return tuple(self._encoder.encode(text, add_special_tokens=False).ids)

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
