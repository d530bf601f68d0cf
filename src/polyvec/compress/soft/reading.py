"""How encoders and decoders read: rows of tokens and vectors, one forward, with or without a cache.

Attention is that of an AttentionPlan wherever the model takes one. B rows, T tokens of the longest
row, P places of a cache, D state size.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from polyvec.compress.soft.memory import MemoryBatch, Pairs
from polyvec.embed.backbone.attention import AttentionPlan
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.causal import kept_pairs
from polyvec.errors import ModelError


class Rows:
    """Rows of a batch, of token ids and of given vectors, gathered in one step.

    `vectors` first, then `tokens`: each returns numbers that stand for what was given, and a row
    is any sequence of such numbers.
    """

    def __init__(self, table: nn.Module) -> None:
        self.table = table
        self.given: list[Tensor] = []
        self.ids: list[np.ndarray] = []
        self.num_given = self.num_ids = 0

    def vectors(self, vectors_ND: Tensor) -> np.ndarray:
        """Numbers of these vectors."""
        assert not self.ids, "vectors come before tokens"
        start = self.num_given
        self.given.append(vectors_ND)
        self.num_given += len(vectors_ND)
        return np.arange(start, self.num_given)

    def memories(self, memory: MemoryBatch) -> list[np.ndarray]:
        """Of each row the numbers of its memory's states."""
        assert memory.states_BMD is not None
        count = memory.states_BMD.shape[1]
        start = int(self.vectors(memory.states_BMD.flatten(0, 1))[0]) if count else 0
        real_BM = memory.real_BM.cpu().numpy()
        return [start + row * count + np.flatnonzero(real) for row, real in enumerate(real_BM)]

    def tokens(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
        """Numbers of these tokens."""
        found = np.asarray(ids, np.int64)
        start = self.num_given + self.num_ids
        self.ids.append(found)
        self.num_ids += len(found)
        return np.arange(start, start + len(found))

    def padded(self, rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Input embeddings [B, T, D], padded on the right, and which of them are real [B, T]."""
        device = next(self.table.parameters()).device
        lengths = np.array([len(row) for row in rows])
        longest = max(1, int(lengths.max()))
        number_BT = np.zeros((len(rows), longest), np.int64)
        for row, numbers in enumerate(rows):
            number_BT[row, : len(numbers)] = numbers
        pool = list(self.given)
        if self.ids or not pool:
            ids = np.concatenate(self.ids) if self.num_ids else np.zeros(1, np.int64)
            pool.append(self.table(torch.from_numpy(ids).to(device)))
        pool_ND = torch.cat([each.to(pool[-1].dtype) for each in pool])
        inputs_BTD = pool_ND[torch.from_numpy(number_BT).to(device)]
        real_BT = np.arange(longest)[None] < lengths[:, None]
        return inputs_BTD, torch.from_numpy(real_BT).to(device)


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Last states [B, T, D], the position after each row [B], and the cache, whose first P places
    were there before."""

    states_BTD: Tensor
    next_B: Tensor
    cache: DynamicCache | None = None
    num_past: int = 0

    def pairs(self, places_BM: Tensor) -> Pairs:
        """Keys and values of each layer at these tokens of each row, [B, H, M, K]."""
        assert self.cache is not None
        found = []
        for pair in kept_pairs(self.cache):
            keys, values = (each[:, :, self.num_past :] for each in pair)
            index = places_BM[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
            found.append((keys.gather(2, index), values.gather(2, index)))
        return tuple(found)


def read(
    backbone: Backbone,
    inputs_BTD: Tensor,
    real_BT: Tensor,
    *,
    modes: tuple[str, ...] | None = None,
    start_B: Tensor | None = None,
    past: tuple[Pairs, Tensor] | None = None,
    segments_BT: Tensor | None = None,
    blocked: tuple[tuple[int, int], ...] = (),
    keep: bool = False,
) -> Read:
    """One forward over input embeddings.

    start_B: position of each row's first token. past: keys and values, and which of their places
    are real [B, P]. blocked: pairs of segments, of which the first does not see the second.
    keep: return the cache. Raises ModelError for what the model does not do.
    """
    model: Any = backbone.model
    positions_BT = (real_BT.long().cumsum(1) - 1).clamp(min=0)
    if start_B is not None:
        positions_BT = positions_BT + start_B[:, None]
    next_B = real_BT.sum(1) + (0 if start_B is None else start_B)
    if backbone.mechanism != "plan":
        if past is not None or blocked or keep:
            raise ModelError(
                f"{type(model).__name__} runs its own attention ({backbone.layout_reason}); keys "
                "and values, and masks between segments, need a decoder that takes a plan"
            )
        body = model.get_encoder() if model.config.is_encoder_decoder else model
        out = body(inputs_embeds=inputs_BTD, attention_mask=real_BT.long())
        return Read(out.last_hidden_state, next_B)
    cache, past_BP = None, None
    if past is not None or keep:
        cache = DynamicCache()
        for number, (keys, values) in enumerate(past[0] if past else ()):
            cache.update(keys, values, number)
        past_BP = past[1] if past is not None else None
    plan = AttentionPlan(
        modes or backbone.spec.modes(backbone.num_layers),
        real_BT=real_BT,
        segments=segments_BT,
        blocked=blocked,
        past_BP=past_BP,
    )
    out = model(
        inputs_embeds=inputs_BTD,
        position_ids=positions_BT + backbone.position_offset,
        plan=plan,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    num_past = 0 if past_BP is None else past_BP.shape[1]
    return Read(out.last_hidden_state, next_B, cache, num_past)


@contextlib.contextmanager
def adapter_off(backbone: Backbone, off: bool = True) -> Iterator[None]:
    """Inside, the model computes as if its adapter were not there; which weights train stays.

    peft's own switch also changes requires_grad.
    """
    layers: list[Any] = [
        each for each in backbone.model.modules() if hasattr(each, "_disable_adapters")
    ]
    before = [each._disable_adapters for each in layers]
    try:
        if off:
            for each in layers:
                each._disable_adapters = True
        yield
    finally:
        for each, value in zip(layers, before, strict=True):
            each._disable_adapters = value
