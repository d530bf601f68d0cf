"""A causal language model, run with its keys and values kept: prompts, then token by token.

G prompts, B rows that are being continued, S new tokens, T tokens in all, D state size, V logits.
"""

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from polyvec.embed.backbone.heads import own_logits
from polyvec.embed.backbone.modes import evaluating
from polyvec.errors import ModelError

# Frequencies of these depend on the longest text of a batch, and change under kept keys.
CHANGING_ROPE = ("dynamic", "longrope")
PROBE = (0, 1, 2)
READ_TOKENS = 4096  # of prompts in one batch
LEAST_PREFIX = 8  # shorter ones cost more than they save


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens that prompts have in common, with their keys and values."""

    ids: tuple[int, ...]
    cache: DynamicCache


class CausalModel:
    """How a transformers language model is run here; nothing in the model changes.

    `context`: most tokens of prompt and answer together, None without a limit. Raises ModelError
    for what is not a decoder, or keeps other states than keys and values (Mamba).
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        self.lm, self.config = lm, lm.config.get_text_config(decoder=True)
        name = type(lm).__name__
        if lm.config.is_encoder_decoder:
            raise ModelError(f"{name} is an encoder-decoder; only decoders write here")
        kept = DynamicCache(config=lm.config).layers
        others = {type(each) for each in kept} - {DynamicLayer, DynamicSlidingWindowLayer}
        if others:
            found = ", ".join(sorted(each.__name__ for each in others))
            raise ModelError(f"{name} keeps other states than keys and values ({found})")
        self.context = _context(self.config)
        self._takes_positions = "position_ids" in inspect.signature(lm.forward).parameters
        self._check_head()

    @property
    def device(self) -> torch.device:
        return next(self.lm.parameters()).device

    def _check_head(self) -> None:
        """Whether the head alone gives the model's logits; else whole batches go through it."""
        ids = torch.tensor([PROBE], device=self.device) % self.config.vocab_size
        with torch.inference_mode(), evaluating(self.lm):
            expected = self.lm(input_ids=ids, use_cache=False).logits[0]
            self.num_logits: int = expected.shape[-1]
            try:
                states = self.lm.base_model(input_ids=ids, use_cache=False).last_hidden_state
                found = own_logits(self.lm, states)[0]
                self.own_head = torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
            except (ModelError, TypeError, AttributeError):
                self.own_head = False

    def read(
        self, prompts: Sequence[Sequence[int]], prefix: Prefix | None = None
    ) -> tuple["Read", DynamicCache]:
        """Prompts in one batch, padded on the right; their tokens after the prefix are read."""
        known = len(prefix.ids) if prefix else 0
        cache = _expanded(prefix, len(prompts))
        texts = [prompt[known:] for prompt in prompts]
        return self.read_on(texts, cache, [known] * len(prompts)), cache

    def read_on(
        self, texts: Sequence[Sequence[int]], cache: DynamicCache, lengths: Sequence[int]
    ) -> "Read":
        """More tokens of each row; the last `lengths` places of the cache are what it had."""
        width, longest = max(lengths), max(map(len, texts))
        ids_GS = torch.zeros(len(texts), longest, dtype=torch.long)
        mask_GT = torch.zeros(len(texts), width + longest, dtype=torch.long)
        for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            ids_GS[row, : len(text)] = torch.tensor(text)
            mask_GT[row, width - length : width + len(text)] = 1
        places_GS = torch.tensor(lengths)[:, None] + torch.arange(longest)
        return self._read(ids_GS, mask_GT, places_GS, cache)

    def step(self, ids_B: Tensor, places_B: Tensor, mask_BT: Tensor, cache: Cache) -> Tensor:
        """Logits of the token after each row's next one, float32 [B, V]; the cache grows by it."""
        out = self._run(ids_B[:, None], mask_BT, places_B[:, None], cache, states=False)
        return out[:, -1].float()

    def alone(self, ids: Sequence[int]) -> Tensor:
        """Logits of the next token after one text that is read whole, float32 [V].

        They depend on nothing but the text (and on the machine), whatever else is computed.
        """
        places_GS = torch.arange(len(ids))[None]
        read = self._read(torch.tensor([list(ids)]), None, places_GS, None)
        return read.logits([0], [len(ids) - 1])[0]

    def shared(self, prompts: Collection[tuple[int, ...]]) -> Prefix | None:
        """What all prompts begin with, read once; None if that saves nothing.

        One token of each is left to be read.
        """
        different = set(prompts)
        if len(different) < 2:
            return None
        length = min(common_length(different), min(map(len, different)) - 1)
        if length < LEAST_PREFIX:
            return None
        ids = next(iter(different))[:length]
        _, cache = self.read([ids])
        return Prefix(ids, cache)

    def _read(
        self, ids_GS: Tensor, mask: Tensor | None, places_GS: Tensor, cache: Cache | None
    ) -> "Read":
        out_GSX = self._run(ids_GS, mask, places_GS, cache, states=self.own_head)
        return Read(self.lm if self.own_head else None, out_GSX)

    @torch.inference_mode()
    def _run(
        self,
        ids: Tensor,
        mask: Tensor | None,
        places: Tensor,
        cache: Cache | None,
        *,
        states: bool,
    ) -> Tensor:
        """The last states, or logits, of a batch: [G, S, D] or [G, S, V]."""
        device = self.device
        options: dict[str, Any] = {"use_cache": cache is not None}
        if self._takes_positions:
            options["position_ids"] = places.to(device)
        if cache is not None:
            options["past_key_values"] = cache
        if mask is not None:
            options["attention_mask"] = mask.to(device)
        run = self.lm.base_model if states else self.lm
        with evaluating(self.lm), torch.autocast(device.type, enabled=False):
            out = run(input_ids=ids.to(device), **options)
        found: Tensor = out.last_hidden_state if states else out.logits
        return found


@dataclass(frozen=True, slots=True)
class Read:
    """What was computed of a batch: states, of which `lm` makes logits where they are needed."""

    lm: PreTrainedModel | None
    out_GSX: Tensor

    @torch.inference_mode()
    def logits(self, rows: Sequence[int], places: Sequence[int]) -> Tensor:
        """Logits of the tokens after these places of these rows, float32 [N, V].

        Places count the tokens that were read, not those before them.
        """
        device = self.out_GSX.device
        chosen_NX = self.out_GSX[
            torch.tensor(rows, device=device), torch.tensor(places, device=device)
        ]
        return (chosen_NX if self.lm is None else own_logits(self.lm, chosen_NX)).float()


def common_length(sequences: Collection[tuple[int, ...]]) -> int:
    """How many first elements all have in common."""
    # Between the first and the last in order lie all others.
    first, last = min(sequences), max(sequences)
    pairs = zip(first, last, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))


def _context(config: Any) -> int | None:
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in CHANGING_ROPE:
        limit = rope.get("original_max_position_embeddings") or limit
    return int(limit) if limit and limit > 0 else None


def _expanded(prefix: Prefix | None, count: int) -> DynamicCache:
    """A cache of `count` rows that all begin with the prefix; without a config no layer forgets."""
    cache = DynamicCache()
    for number, pair in enumerate(kept_pairs(prefix.cache) if prefix else []):
        keys, values = (each.expand(count, -1, -1, -1) for each in pair)
        cache.update(keys, values, number)
    return cache


def kept_pairs(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, [G, H, T, D]."""
    pairs = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None and layer.values is not None
        pairs.append((layer.keys, layer.values))
    return pairs
