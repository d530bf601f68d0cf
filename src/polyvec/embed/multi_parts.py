"""The parts of a MultiVectorEmbedder, as reading and writing pass them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.tokens import TextTokenizer


@dataclass(frozen=True, slots=True)
class Expansion:
    """Tokens that fill a query up to `length`: their states are vectors of the query, too.

    With `attend` the query's tokens see them. Without `fixed` longer queries stay whole.
    """

    token_id: int
    length: int
    attend: bool = False
    fixed: bool = True


@dataclass(frozen=True, slots=True)
class LateSettings:
    """What decides the vectors of a side, beside prompts.

    Lengths count all tokens, special tokens and expansion included; None is the model's own.
    Tokens with `skipped_ids` give no vector on the sides in `skipped_on`; a text without a side
    counts as a document.
    """

    query_length: int | None = None
    document_length: int | None = None
    expansion: Expansion | None = None
    skipped_ids: tuple[int, ...] = ()
    skipped_on: tuple[str, ...] = ("document",)

    def length(self, role: str | None) -> int | None:
        """Most tokens that are read on a side; None for the model's own limit."""
        if role == "document":
            return self.document_length
        if role != "query":
            return None
        if self.expansion is None:
            return self.query_length
        if self.expansion.fixed:
            return self.expansion.length
        return self.query_length and max(self.query_length, self.expansion.length)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiParts:
    """`MultiVectorEmbedder(**parts.keywords())` puts them together."""

    backbone: Backbone
    text_tokenizer: TextTokenizer
    projections: Sequence[nn.Module]
    settings: LateSettings
    prompts: PromptTable
    similarity_fn_name: str

    def keywords(self) -> dict[str, Any]:
        """The parts by the names that MultiVectorEmbedder takes; not copied."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
