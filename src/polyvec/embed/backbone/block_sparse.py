"""BigBird's block-sparse attention: each text has the states that a fresh model gives it alone.

transformers (5.23) switches a whole model to full attention, for good, at the first batch of
short texts, and pads longer batches to whole blocks, which moves the blocks that are seen.

B texts, T tokens of the longest text, D state size.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.runners import Native, Needs
from polyvec.embed.inputs.tokens import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPARSE, FULL = "block_sparse", "original_full"
STATES = ("last_hidden_state", "encoder_last_hidden_state")
LAYERS = ("hidden_states", "encoder_hidden_states")


def native(model: PreTrainedModel, pad_id: int) -> Native:
    """The runner by the model's own attention, which for BigBird is of two kinds."""
    sparse = getattr(model.config, "attention_type", None) == SPARSE
    return BlockSparse(model, pad_id) if sparse and _switches(model) else Native(model, pad_id)


class BlockSparse(Native):
    """Short texts in a batch with full attention, each longer one alone with sparse attention."""

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        super().__init__(model, pad_id)
        _switch(model, SPARSE)  # an earlier short text may have switched it
        tensors = [*model.parameters(), *model.buffers()]
        self.full = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        _switch(self.full, FULL)
        blocks = 5 + 2 * int(model.config.num_random_blocks)
        self.longest_full = blocks * int(model.config.block_size)

    def run(self, batch: TokenBatch, spec: AttentionSpec, needs: Needs) -> Any:
        texts = np.split(batch.ids_T, np.cumsum(batch.lengths)[:-1])
        short = [i for i, text in enumerate(texts) if len(text) <= self.longest_full]
        if self.full.training != self.model.training:
            self.full.train(self.model.training)
        rows = [([i], self.model) for i in range(len(texts)) if i not in set(short)]
        rows += [(short, self.full)] if short else []
        found = [
            (own, Native(model, self.pad_id).run(_batch(texts, own), spec, needs))
            for own, model in rows
        ]
        return _joined(found, max(batch.lengths))


def _batch(texts: list[np.ndarray], rows: list[int]) -> TokenBatch:
    return TokenBatch.of_ids([texts[i] for i in rows])


def _joined(found: list[tuple[list[int], Any]], length: int) -> SimpleNamespace:
    """The outputs of groups of rows as one, in the order of the rows, [B, T, D] each."""
    order = torch.tensor([row for rows, _ in found for row in rows]).argsort()
    outs = [out for _, out in found]

    def joined(states: list[Tensor]) -> Tensor:
        # A decoder's start state has one position, in every group.
        end = length if any(state.shape[1] > 1 for state in states) else 1
        padded = [F.pad(state, (0, 0, 0, end - state.shape[1])) for state in states]
        return torch.cat(padded)[order.to(padded[0].device)]

    whole: dict[str, Any] = {}
    for name in STATES:
        states: list[Any] = [getattr(out, name, None) for out in outs]
        whole[name] = None if states[0] is None else joined(states)
    for name in LAYERS:
        layers = [getattr(out, name, None) for out in outs]
        whole[name] = layers[0] and tuple(joined(list(one)) for one in zip(*layers, strict=True))
    return SimpleNamespace(**whole)


def _switches(model: nn.Module) -> list[Any]:
    """The outermost modules that switch their attention: a BigBird body, an encoder."""
    found = [module for module in model.modules() if hasattr(module, "set_attention_type")]
    return found[:1]


def _switch(model: nn.Module, kind: str) -> None:
    training = model.training
    for module in _switches(model):
        module.set_attention_type(kind)
    model.train(training)
