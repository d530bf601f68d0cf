"""Texts with some tokens replaced by a language model that is not trained.

T tokens of all texts of a batch.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.families import family_of
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.tokenizer import load_tokenizer
from polyvec.embed.formats.transformer import is_masked, load_transformer
from polyvec.embed.inputs.tokens import TokenBatch, Tokens, budget_batches
from polyvec.errors import SettingsError
from polyvec.train.language_head import NUM_LOGITS, attach_head
from polyvec.train.predicting import BLANK, mask_tokens, token_id

Edit = Literal["all", "masked"]
SELF = "self"


@dataclass(frozen=True, slots=True)
class Edited:
    """A text as the generator rewrote it, and which of its tokens differ from the original."""

    tokens: Tokens
    replaced: np.ndarray


class Generator:
    """Masks a share of a text's tokens and puts the most likely ones there.

    name: a folder or hub id of a language model with the embedder's vocabulary; "self": a copy of
    the embedder with its own head, as it is now. A masked model predicts a token by the token's
    state, any other by the state before it. edit: "all" takes the most likely token at every place
    but the first, as DiffCSE's code does, "masked" at masked places only; by default "all" of a
    masked model. Nothing of it is trained or saved; it reads without dropout.
    """

    def __init__(
        self,
        embedder: Embedder,
        name: str,
        *,
        probability: float,
        mask: str | None = None,
        edit: Edit | None = None,
        where: str,
    ) -> None:
        if not 0 < probability < 1:
            raise SettingsError(f"{where}: probability {probability} is not between 0 and 1")
        self.probability = probability
        self.mask_id = token_id(embedder, mask or embedder.tokenizer.mask_token or BLANK, "mask")
        self.specials = np.array(sorted(embedder.tokenizer.all_special_ids))
        self.backbone = self._own(embedder) if name == SELF else self._read(embedder, name, where)
        self.num_rows = self.backbone.num_rows or 0
        # A body alone has no head: is_masked then goes by the family.
        self.shift = 0 if is_masked(self.backbone.model.config) else 1
        self.edit: Edit = edit or ("masked" if self.shift else "all")
        self.backbone.requires_grad_(False).eval()

    @staticmethod
    def _own(embedder: Embedder) -> Backbone:
        copied: Embedder = copy.deepcopy(embedder)
        attach_head(copied)
        return copied.backbone

    @staticmethod
    def _read(embedder: Embedder, name: str, where: str) -> Backbone:
        folder = model_folder(name, namespace=None)
        if load_tokenizer(folder).get_vocab() != embedder.tokenizer.get_vocab():
            raise SettingsError(
                f"{where}: generator {name!r} has another vocabulary than the embedder; its tokens "
                "would be other words"
            )
        lm: Any = load_transformer(folder, kind="lm", family=family_of(folder))
        pad_id = embedder.tokenizer.pad_token_id or 0
        return Backbone(lm.base_model, pad_id, lm=lm).to(embedder.device)

    @torch.no_grad()
    def edited(
        self, texts: Sequence[Tokens], draws: Sequence[np.random.Generator], budget: int
    ) -> list[Edited]:
        """Each text rewritten; what is masked depends on its draw only."""
        masked = [
            mask_tokens(
                text.ids,
                self._free(text),
                draw,
                probability=self.probability,
                mask_id=self.mask_id,
                num_rows=self.num_rows,
                replace="bert",
            )
            for text, draw in zip(texts, draws, strict=True)
        ]
        found: list[Any] = [None] * len(texts)
        for rows in budget_batches([len(text) for text in texts], batch_tokens=budget):
            read = [replace(texts[row], ids=masked[row][0]) for row in rows]
            for row, ids in zip(rows, self._most_likely(read), strict=True):
                found[row] = self._edit(texts[row], masked[row][1], ids)
        return found

    def _free(self, text: Tokens) -> np.ndarray:
        free: np.ndarray = ~np.isin(text.ids, self.specials)
        free[: self.shift] = False
        return free

    def _most_likely(self, texts: Sequence[Tokens]) -> Iterator[np.ndarray]:
        """The most likely token at each place; with a shift the first is 0, and not read."""
        batch = TokenBatch.of(range(len(texts)), texts)
        states = self.backbone(batch)
        states_TD = states.last_BTD[states.attention_mask_BT]
        rows = max(1, NUM_LOGITS // max(1, self.num_rows))
        best = [self.backbone.logits(part).argmax(-1) for part in states_TD.split(rows)]
        ids_T = torch.cat(best).cpu().numpy().astype(batch.ids_T.dtype)
        for ids in np.split(ids_T, np.cumsum(batch.lengths)[:-1]):
            yield np.concatenate([np.zeros(self.shift, ids.dtype), ids])[: len(ids)]

    def _edit(self, text: Tokens, places: np.ndarray, best: np.ndarray) -> Edited:
        ids = text.ids.copy()
        if self.edit == "all":
            ids[1:] = best[1:]
        else:
            ids[places] = best[places]
        return Edited(replace(text, ids=ids), ids != text.ids)
