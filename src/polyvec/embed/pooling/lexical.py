"""Pooling in vocabulary space: one weight for each vocabulary entry, by the model's LM head.

B texts, T tokens of the longest, C tokens of a chunk, D state size, V vocabulary.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polyvec.embed.backbone.states import States
from polyvec.embed.part import at_least, one_of, wide
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import last
from polyvec.embed.projection.trained import keep
from polyvec.errors import SettingsError, ShapeError
from polyvec.registry import Fact

WITHOUT_WORDS = 10  # weights that a text without content words keeps, as in PromptReps' code
Head = Callable[[Tensor], Tensor]


class Lexical(PoolingModule):
    """log(1 + relu(logits of the LM head)) as a vector over the vocabulary, [B, V], dense.

    `over`: the largest (SPLADE v2, Formal et al. 2021, arXiv:2109.10086) or the sum (SPLADE,
    arXiv:2107.05720) over the pooled tokens, or the last of them alone (PromptReps, Zhuang
    et al. 2024, arXiv:2404.18424). `text_only` keeps ids that occur in the text itself, then
    `top_k` the largest ones. `skip_first` (exclude the first token) is required for max and
    sum: the first token of a decoder is an attention sink whose logits dominate the text's
    (SILENT row 8). `activation` "log1p_relu" takes the logarithm twice (Geng et al. 2024,
    arXiv:2411.04403). With `words`, as in PromptReps' released code, the ids kept are those of
    the text's content words (inputs/content_words.py), and the ten largest of all for a text that
    has none; `scale` (100 there) makes weights whole numbers. At most `max_elements` logits, or
    those of one token, are in memory at a time, in training too.
    """

    needs = frozenset({"lm_head"})
    output_kind = "sparse"

    def __init__(
        self,
        vocab_size: Annotated[int, Fact("vocab_size")],
        over: str,
        top_k: int | None = None,
        text_only: bool = False,
        skip_first: bool | None = None,
        activation: str = "relu",
        words: bool = False,
        scale: int | None = None,
        max_elements: int = 2**26,
    ) -> None:
        super().__init__()
        one_of("Lexical: over", over, ("max", "sum", "last"))
        one_of("Lexical: activation", activation, ("relu", "log1p_relu"))
        at_least(1, "Lexical", vocab_size=vocab_size, max_elements=max_elements)
        if top_k is not None and not 1 <= top_k <= vocab_size:
            raise SettingsError(f"Lexical: top_k {top_k} is not between 1 and {vocab_size}")
        if (over == "last") != (skip_first is None):
            raise SettingsError(
                f"Lexical over {over}: skip_first is {skip_first}; expected true or false over max "
                "and sum (true for decoders, whose first token is an attention sink), unset over "
                "last"
            )
        self.vocab_size = self.out_features = vocab_size
        self.over, self.top_k, self.text_only = over, top_k, text_only
        self.skip_first, self.max_elements = skip_first, max_elements
        self.activation, self.words, self.scale = activation, words, scale
        if words and text_only:
            raise SettingsError("Lexical: text_only and words both choose the ids; use one of them")
        if scale is not None:
            at_least(1, "Lexical", scale=scale)

    def vectors(self, states: States) -> Tensor:
        assert states.lm_head is not None  # forward has checked
        read = self._last if self.over == "last" else self._tokens
        weights_BV = read(states, states.lm_head)
        if self.text_only:
            weights_BV = torch.where(self._in_text(states), weights_BV, 0)
        if self.words:
            weights_BV = torch.where(self._of_words(states, weights_BV), weights_BV, 0)
        if self.scale is not None:
            weights_BV = (weights_BV * self.scale).round()
        if self.top_k is not None:
            weights_BV = keep(weights_BV, weights_BV.topk(self.top_k, dim=-1).indices)
        return weights_BV

    def _last(self, states: States, lm_head: Head) -> Tensor:
        last_BD = last(states.last_BTD, states.pooling_mask_BT)
        chunks = last_BD.split(max(1, self.max_elements // self.vocab_size))
        return torch.cat([self._weights(chunk_CD, lm_head) for chunk_CD in chunks])

    def _tokens(self, states: States, lm_head: Head) -> Tensor:
        read_BT = states.pooling_mask_BT.bool()
        if self.skip_first:
            # By count of real tokens, not by index 0, for padding on the left.
            read_BT = read_BT & (states.attention_mask_BT.long().cumsum(dim=1) > 1)
        texts = zip(states.last_BTD, read_BT, strict=True)
        return torch.stack([self._text(text_TD[read_L], lm_head) for text_TD, read_L in texts])

    def _text(self, tokens_TD: Tensor, lm_head: Head) -> Tensor:
        """Weights of one text, [V]; zeros if it has no token left."""
        if not len(tokens_TD):
            return wide(tokens_TD).new_zeros(self.vocab_size)
        chunks = tokens_TD.split(max(1, self.max_elements // self.vocab_size))
        # Recomputed in the backward pass, so that the logits of only one chunk are in memory.
        rows = [
            checkpoint(
                self._reduced, chunk_CD, lm_head, use_reentrant=False, preserve_rng_state=False
            )
            for chunk_CD in chunks
        ]
        return self._reduce(torch.stack(rows))

    def _reduced(self, tokens_CD: Tensor, lm_head: Head) -> Tensor:
        return self._reduce(self._weights(tokens_CD, lm_head))

    def _reduce(self, weights_CV: Tensor) -> Tensor:
        return weights_CV.amax(dim=0) if self.over == "max" else weights_CV.sum(dim=0)

    def _weights(self, tokens_CD: Tensor, lm_head: Head) -> Tensor:
        logits_CV = lm_head(tokens_CD)
        if logits_CV.shape[-1] != self.vocab_size:
            raise ShapeError(
                f"Lexical expects a vocabulary of {self.vocab_size}, the LM head has "
                f"{logits_CV.shape[-1]}"
            )
        weights_CV = wide(logits_CV).relu().log1p()
        return weights_CV.log1p() if self.activation == "log1p_relu" else weights_CV

    def _of_words(self, states: States, weights_BV: Tensor) -> Tensor:
        """Which ids are of a text's content words, or the largest if it has none, [B, V]."""
        if len(states.word_ids) != len(weights_BV):
            raise ShapeError(f"Lexical: words of {len(states.word_ids)} texts, {len(weights_BV)}")
        kept_BV = torch.zeros_like(weights_BV, dtype=torch.bool)
        for row, ids in enumerate(states.word_ids):
            kept_BV[row, ids if len(ids) else weights_BV[row].topk(WITHOUT_WORDS).indices] = True
        return kept_BV

    def _in_text(self, states: States) -> Tensor:
        text_mask_BT = states.text_mask_BT.bool() & states.attention_mask_BT.bool()
        row_T = text_mask_BT.nonzero()[:, 0]
        in_text_BV = text_mask_BT.new_zeros(len(text_mask_BT), self.vocab_size)
        in_text_BV[row_T, states.ids_BT[text_mask_BT]] = True
        return in_text_BV
