"""The leak probe: does a model see what its recipe says, and nothing else?

A token at the end is exchanged; states before it may move only in layers that look ahead.
It runs after every load and conversion (SILENT rows 1 and 2): models that were told to be
bidirectional and stayed causal are the field's most common silent failure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.errors import ModelError

PROBE_LENGTH, PREFIX_LENGTH = 6, 3
# Rounding noise is smaller, what a token sees of another is larger, in any precision.
MOVED = 1e-5
# A padded batch adds up in another order than a text alone; half precision is coarser.
SAME = 1e-3

Run = Callable[[Sequence[Tensor], int], list[tuple[Tensor, ...]]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """First layer (counted from 1) after which an early state moves with a later token; 0: none."""

    first_layer: int
    num_layers: int

    def __str__(self) -> str:
        if not self.num_layers:
            return "each token alone: there are no layers"
        if not self.first_layer:
            return f"causal in all {self.num_layers} layers"
        if self.first_layer == 1:
            return f"bidirectional from the first of {self.num_layers} layers"
        return f"bidirectional from layer {self.first_layer} of {self.num_layers}, causal before"


def probe(run: Run, ids: Tensor, other: int) -> Verdict:
    """What a model does with one text, alone and beside a longer one.

    `run` takes texts (ids, [T] each) and a number of prefix tokens, and gives each text's
    states after the embeddings and after every layer, [T, D] each. `ids` has at least
    2 * PROBE_LENGTH tokens, `other` is the token put in.
    Raises ModelError if the states, or the verdict, alone and in a batch are not the same.
    """
    text, longer = ids[:PROBE_LENGTH], ids[: 2 * PROBE_LENGTH]
    changed = _exchange(text, PROBE_LENGTH - 1, other)
    before_alone, before_beside = run([text], 0)[0], run([text, longer], 0)[0]
    alone = _first_moved(before_alone, run([changed], 0)[0], PROBE_LENGTH - 1)
    beside = _first_moved(before_beside, run([changed, longer], 0)[0], PROBE_LENGTH - 1)
    error = (before_alone[-1] - before_beside[-1]).abs().max()
    if error > SAME * before_alone[-1].abs().max().clamp(min=1):
        raise ModelError(
            f"a text beside a longer one has other states than alone (by {float(error):.1e}): "
            "padding or a neighbour is seen, and vectors would depend on the batch"
        )
    if alone.first_layer != beside.first_layer:
        raise ModelError(
            f"a text alone is {alone}, beside a longer one it is {beside}: "
            "vectors would depend on the batch"
        )
    return alone


def check(run: Run, ids: Tensor, other: int, spec: AttentionSpec) -> Verdict:
    """The verdict, if it is what `spec` says; ModelError with layer and remedy otherwise."""
    if spec.kind == "prefix":
        return _check_prefix(run, ids, other)
    verdict = probe(run, ids, other)
    modes = spec.modes(verdict.num_layers)
    if spec.kind == "native":
        return verdict
    expected = modes.index("bidirectional") + 1 if "bidirectional" in modes else 0
    if verdict.first_layer != expected:
        raise ModelError(
            f"the recipe says attention {str(spec)!r}, but the model is {verdict}; "
            "leave attention out to run it as it is, or report the family"
        )
    return verdict


def _check_prefix(run: Run, ids: Tensor, other: int) -> Verdict:
    """Inside the prefix the first token moves, for what comes after it nothing does."""
    text = ids[:PROBE_LENGTH]
    before = run([text], PREFIX_LENGTH)[0]
    inside = run([_exchange(text, PREFIX_LENGTH - 1, other)], PREFIX_LENGTH)[0]
    outside = run([_exchange(text, PROBE_LENGTH - 1, other)], PREFIX_LENGTH)[0]
    verdict = _first_moved(before, inside, PREFIX_LENGTH - 1)
    beyond = _first_moved(before, outside, PROBE_LENGTH - 1)
    if verdict.first_layer != 1 or beyond.first_layer:
        raise ModelError(
            f"attention 'prefix': inside the prefix the model is {verdict}, after it {beyond}"
        )
    return verdict


def _exchange(ids: Tensor, place: int, other: int) -> Tensor:
    changed = ids.clone()
    changed[place] = other if ids[place] != other else other - 1
    return changed


def _first_moved(before: tuple[Tensor, ...], after: tuple[Tensor, ...], place: int) -> Verdict:
    """The first layer after which a state before `place` moved."""
    moved = [
        bool((a[:place] - b[:place]).abs().max() > MOVED * a[:place].abs().max().clamp(min=1e-3))
        for a, b in zip(before, after, strict=True)
    ]
    first = next((layer for layer, move in enumerate(moved) if move), 0)
    return Verdict(first, len(before) - 1)


def probe_ids(vocab_size: int) -> tuple[Tensor, int]:
    """Random ids for the probe and one to put in; the first few, often special, are avoided."""
    generator = torch.Generator().manual_seed(1)
    low = min(5, vocab_size - 1)
    ids = torch.randint(low, vocab_size, (2 * PROBE_LENGTH,), generator=generator)
    return ids, vocab_size - 2
