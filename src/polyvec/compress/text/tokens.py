"""Tokens of the user's model, in which budgets are counted."""

import functools
import math
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.compress.text.units import Span, stripped
from polyvec.errors import InputError

CACHED = 8  # tokenizers that stay loaded


class TokenCounter:
    """Counts the tokens of texts, without special tokens.

    `count` is any function from a text to a number of tokens; `offsets` gives each token's place
    in characters, and is needed for the unit "token" only.
    """

    def __init__(
        self,
        count: Callable[[str], int],
        offsets: Callable[[str], list[Span]] | None = None,
        *,
        name: str = "a function",
    ) -> None:
        self.count, self._offsets, self.name = count, offsets, name

    @classmethod
    def load(cls, name: str | Path) -> "TokenCounter":
        """Of the tokenizer of a folder, hub id or GGUF file; no weights are loaded."""
        return _loaded(str(name))

    @classmethod
    def of(cls, encoder: Any, name: str) -> "TokenCounter":
        """Of a tokenizer of the library tokenizers that neither pads nor truncates."""

        def encode(text: str) -> Any:
            return encoder.encode(text, add_special_tokens=False)

        return cls(lambda text: len(encode(text)), lambda text: encode(text).offsets, name=name)

    def remembering(self) -> "TokenCounter":
        """The same, but it does not read a text twice; for the time of one call."""
        if self._offsets is None:
            return TokenCounter(functools.lru_cache(16)(self._checked), name=self.name)
        offsets = functools.lru_cache(2)(self._offsets)
        first: list[str] = []  # of the whole context both are asked

        @functools.lru_cache(16)
        def count(text: str) -> int:
            first.append(text)
            return len(offsets(text)) if len(first) == 1 else self.count(text)

        return TokenCounter(count, offsets, name=self.name)

    def _checked(self, text: str) -> int:
        found = self.count(text)
        if not isinstance(found, Real) or not 0 <= found < math.inf:
            raise InputError(f"tokenizer: {self.name} counted {found!r} tokens, expected a number")
        return found

    @property
    def has_offsets(self) -> bool:
        return self._offsets is not None

    def spans(self, text: str) -> list[Span]:
        """The tokens' places without white space; tokens within one character are one."""
        if self._offsets is None:
            raise InputError(
                f"unit 'token': {self.name} counts tokens but does not say where they are; give a "
                "model's name, or take the unit 'word'"
            )
        found: list[Span] = []
        for start, end in stripped(text, self._offsets(text)):
            if found and start < found[-1][1]:
                found[-1] = (found[-1][0], max(end, found[-1][1]))
            else:
                found.append((start, end))
        return found

    def costs(self, text: str, units: tuple[Span, ...]) -> np.ndarray:
        """About how many tokens each unit has in the text, int64 [U], at least 1."""
        if self._offsets is None:
            return np.array([max(1, self.count(text[a:b])) for a, b in units], np.int64)
        # A token with the space before a word begins before the unit, so its end decides.
        last = np.array([end for _, end in self._offsets(text)], np.int64) - 1
        starts = np.array([start for start, _ in units], np.int64)
        place = np.searchsorted(starts, last, side="right") - 1
        costs = np.bincount(place[place >= 0], minlength=len(units))
        return np.maximum(costs, 1).astype(np.int64)


@functools.lru_cache(CACHED)
def _loaded(name: str) -> TokenCounter:
    from polyvec.embed.formats.sources import model_folder
    from polyvec.embed.formats.tokenizer import load_tokenizer
    from polyvec.embed.inputs.contract import bare

    root = model_folder(name, namespace=None if "/" in name else "sentence-transformers")
    return TokenCounter.of(bare(load_tokenizer(root), specials_are_text=True), name)
