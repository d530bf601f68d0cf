"""The leak probe: does a model see what its recipe says, and nothing else?

A token at the end is replaced; earlier states may change only in layers that look ahead. The
probe runs after every load and conversion (SILENT rows 1 and 2): a model that was set to
bidirectional and stays causal is the field's most common silent failure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.errors import ModelError

PROBE_LENGTH, PREFIX_LENGTH = 6, 3
# Relative to the largest state. A dense model gives the same text bit-equal states while the
# shapes stay the same; what one token contributes to another is far above this.
MOVED = 1e-5
# A text alone and in a batch go through other kernels, whose sums round differently.
SAME = 1e-3
# Rounding errors that a correct model may accumulate until its last layer, in units of epsilon.
ROUNDINGS = 16
# The rounding that one pair of texts shows is not the largest there is.
NOISE_MARGIN = 4

States = tuple[Tensor, ...]
Run = Callable[[Sequence[Tensor], int], list[States]]


def tolerance(at_least: float, dtype: torch.dtype) -> float:
    """A relative tolerance in a dtype: `at_least` in float32, about 0.016 and 0.125 in halves."""
    return max(at_least, ROUNDINGS * torch.finfo(dtype).eps)


@dataclass(frozen=True, slots=True)
class Verdict:
    """First layer, from 1, whose early states depend on a later token; 0: none does."""

    first_layer: int
    num_layers: int

    def __str__(self) -> str:
        if not self.num_layers:
            return "without layers: each token sees itself only"
        if not self.first_layer:
            return f"causal in all {self.num_layers} layers"
        if self.first_layer == 1:
            return f"bidirectional from the first of {self.num_layers} layers"
        return f"bidirectional from layer {self.first_layer} of {self.num_layers}, causal before"


def probe(run: Run, ids: Tensor, other: int) -> Verdict:
    """What a model sees in one text, alone and in a batch with a longer one.

    `run` takes texts (ids, [T] each) and a number of prefix tokens, and returns each text's
    states after the embeddings and after every layer, [T, D] each. `ids` has at least
    2 * PROBE_LENGTH tokens; `other` is the token that replaces one.
    Raises ModelError if states or verdict differ between alone and in a batch.
    """
    text, longer = ids[:PROBE_LENGTH], ids[: 2 * PROBE_LENGTH]
    changed = replaced(text, PROBE_LENGTH - 1, other)
    before_alone, before_beside = run([text], 0)[0], run([text, longer], 0)[0]
    check_beside(before_alone[-1], before_beside[-1])
    threshold = _threshold(before_beside, run([text, longer.flip(0)], 0)[0])
    alone = _first_moved(before_alone, run([changed], 0)[0], PROBE_LENGTH - 1, threshold)
    after_beside = run([changed, longer], 0)[0]
    beside = _first_moved(before_beside, after_beside, PROBE_LENGTH - 1, threshold)
    if alone.first_layer != beside.first_layer:
        raise ModelError(
            f"the model is {alone} for a text alone, and {beside} in a batch: "
            "vectors would depend on the batch"
        )
    return alone


def check_beside(alone: Tensor, beside: Tensor) -> None:
    """Raises ModelError if a text's last states are others in a batch with a longer text."""
    error = (alone - beside).abs().max()
    if error > tolerance(SAME, alone.dtype) * alone.abs().max().clamp(min=1):
        raise ModelError(
            f"the states of a text change by {float(error):.1e} in a batch with a longer text: "
            "padding or another text is seen, and vectors would depend on the batch"
        )


def check(run: Run, ids: Tensor, other: int, spec: AttentionSpec) -> Verdict:
    """The verdict if it agrees with `spec`; ModelError with the layer and a remedy otherwise."""
    if spec.kind == "prefix":
        return _check_prefix(run, ids, other)
    verdict = probe(run, ids, other)
    modes = spec.modes(verdict.num_layers)
    if spec.kind == "native":
        return verdict
    expected = modes.index("bidirectional") + 1 if "bidirectional" in modes else 0
    if verdict.first_layer != expected:
        raise ModelError(
            f"attention {str(spec)!r} was asked for, but the model is {verdict}; "
            "leave out attention to run the model as it is, or report its family as a bug"
        )
    return verdict


def _check_prefix(run: Run, ids: Tensor, other: int) -> Verdict:
    """A token in the prefix changes the first layer's states before it, a later one none."""
    text = ids[:PROBE_LENGTH]
    before = run([text], PREFIX_LENGTH)[0]
    threshold = _threshold(
        run([text, ids], PREFIX_LENGTH)[0], run([text, ids.flip(0)], PREFIX_LENGTH)[0]
    )
    inside = run([replaced(text, PREFIX_LENGTH - 1, other)], PREFIX_LENGTH)[0]
    outside = run([replaced(text, PROBE_LENGTH - 1, other)], PREFIX_LENGTH)[0]
    verdict = _first_moved(before, inside, PREFIX_LENGTH - 1, threshold)
    beyond = _first_moved(before, outside, PROBE_LENGTH - 1, threshold)
    if verdict.first_layer != 1 or beyond.first_layer:
        raise ModelError(
            f"attention 'prefix': the model is {verdict} in the prefix and {beyond} after it"
        )
    return verdict


def replaced(ids: Tensor, place: int, other: int) -> Tensor:
    changed = ids.clone()
    changed[place] = other if ids[place] != other else other - 1
    return changed


def _threshold(before: States, after: States) -> float:
    """How far a state moves, relative to its layer, before it counts as moved.

    `before` and `after` are of one text beside two neighbours, which it does not see: what
    moves is rounding alone. Only routed experts round differently then, because other tokens
    form other groups; in half precision that is more than MOVED.
    """
    noise = max(movement(a, b) for a, b in zip(before, after, strict=True))
    return max(MOVED, NOISE_MARGIN * noise)


def _first_moved(before: States, after: States, place: int, threshold: float) -> Verdict:
    """The first layer after which a state before `place` changed."""
    moved = [movement(a[:place], b[:place]) > threshold for a, b in zip(before, after, strict=True)]
    first = next((layer for layer, move in enumerate(moved) if move), 0)
    return Verdict(first, len(before) - 1)


def movement(before: Tensor, after: Tensor) -> float:
    """The largest change, relative to the largest state."""
    return float((before - after).abs().max() / before.abs().max().clamp(min=1e-3))


def probe_ids(vocab_size: int) -> tuple[Tensor, int]:
    """Random ids for the probe and a replacement; the first few ids are often special."""
    generator = torch.Generator().manual_seed(1)
    low = min(5, vocab_size - 1)
    ids = torch.randint(low, vocab_size, (2 * PROBE_LENGTH,), generator=generator)
    return ids, vocab_size - 2
