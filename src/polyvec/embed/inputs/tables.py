"""Tokens for tables of vectors: what sentence-transformers' and model2vec's static models read.

They add no special tokens, so a text may have no tokens at all. It is then one token that is not
pooled, whose mean is zeros, as both libraries have it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.tokens import TextTokenizer, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def never_empty(tokens: Tokens) -> Tokens:
    """The tokens, or one that is not pooled where there are none."""
    if len(tokens):
        return tokens
    no = np.zeros(1, bool)
    return Tokens(np.zeros(1, np.int32), no, no, np.zeros(1, np.int8), tokens.full_length)


class TableTokenizer(TextTokenizer):
    """A text's tokens for a table of vectors.

    With `as_model2vec` unknown words are left out, and a text is cut to `max_length` times the
    median length of a token in characters before it is tokenised, as the package does.
    """

    zero_if_empty = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        as_model2vec: bool = False,
    ) -> None:
        super().__init__(tokenizer, max_length=max_length)
        self.as_model2vec = as_model2vec
        self.unknown_id = _unknown_id(tokenizer) if as_model2vec else None
        words = tokenizer.get_vocab() if as_model2vec else ("",)
        self.median_length = int(median(map(len, words)))

    def encode(self, batch: Sequence[tuple[Span, ...]], *, text_mask: bool = False) -> list[Tokens]:
        """Tokens of each text, in order; one that is not pooled for a text without tokens."""
        if not self.as_model2vec:
            return [never_empty(t) for t in super().encode(batch, text_mask=text_mask)]
        cut = [self._cut(spans) for spans in batch]
        found = super().encode([spans for spans, _ in cut], text_mask=text_mask)
        return [
            never_empty(self._known(tokens, lost))
            for tokens, (_, lost) in zip(found, cut, strict=True)
        ]

    def _cut(self, spans: tuple[Span, ...]) -> tuple[tuple[Span, ...], bool]:
        """The spans up to the limit of characters, and whether any were lost."""
        if self.max_length is None:
            return spans, False
        room, out = self.max_length * self.median_length, []
        for span in spans:
            out.append(dataclasses.replace(span, text=span.text[:room]))
            room = max(0, room - len(span.text))
        lost = sum(len(s.text) for s in spans) > sum(len(s.text) for s in out)
        return tuple(out), lost

    def _known(self, tokens: Tokens, lost: bool) -> Tokens:
        """Without unknown words. A text that lost characters counts as truncated."""
        keep = tokens.ids != (-1 if self.unknown_id is None else self.unknown_id)
        dropped = len(keep) - int(keep.sum())
        return Tokens(
            tokens.ids[keep],
            tokens.pooled[keep],
            tokens.text[keep],
            tokens.segments[keep],
            tokens.full_length - dropped + (1 if lost and not tokens.truncated else 0),
        )

    def table_settings(self) -> dict[str, Any]:
        """What of this decides a vector, beside the contract."""
        return {"model2vec": True} if self.as_model2vec else {}


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the unknown token of the tokenizer's model, whatever its kind."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model.get("unk_token") is not None:
        found = tokenizer.backend_tokenizer.token_to_id(model["unk_token"])
        return None if found is None else int(found)
    return None if model.get("unk_id") is None else int(model["unk_id"])
