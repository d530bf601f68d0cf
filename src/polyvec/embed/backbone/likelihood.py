"""Log-probabilities of given tokens; what continuations have in common is computed once.

N continuations, V logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from polyvec.embed.backbone.causal import (
    READ_TOKENS,
    CausalModel,
    Prefix,
    Read,
    common_length,
    kept_pairs,
)

LOGITS = 256  # rows of logits at a time


@dataclass(frozen=True, slots=True)
class _Stem:
    """A prompt with what its continuations begin with, and the numbers of those."""

    ids: tuple[int, ...]
    prompt: int
    numbers: tuple[int, ...]


def log_probabilities(
    model: CausalModel,
    prompts: Sequence[tuple[int, ...]],
    continuations: Sequence[tuple[int, ...]],
) -> list[np.ndarray]:
    """Those of each continuation's tokens after its prompt, in nats: float32 [tokens].

    Equal to a plain forward pass over both together. No prompt or continuation may be empty.
    """
    texts = [prompt + more for prompt, more in zip(prompts, continuations, strict=True)]
    found = [np.zeros(len(each), np.float32) for each in continuations]
    stems = sorted(_stems(prompts, texts), key=lambda stem: (len(stem.ids), stem.ids))
    prefix = model.shared(prompts)
    for batch in _batches(stems):
        _fill(model, batch, prefix, texts, found)
    return found


def _stems(prompts: Sequence[tuple[int, ...]], texts: Sequence[tuple[int, ...]]) -> Iterator[_Stem]:
    """One for each different prompt; the last token of a text need not be read."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(number)
    for prompt, numbers in groups.items():
        members = [texts[number] for number in numbers]
        length = min(common_length(members), min(map(len, members)) - 1)
        yield _Stem(members[0][:length], len(prompt), tuple(numbers))


def _batches(stems: Sequence[_Stem]) -> Iterator[list[_Stem]]:
    """Stems, sorted by length, in batches of READ_TOKENS with padding."""
    batch: list[_Stem] = []
    for stem in stems:
        if batch and (len(batch) + 1) * len(stem.ids) > READ_TOKENS:
            yield batch
            batch = []
        batch.append(stem)
    if batch:
        yield batch


def _fill(
    model: CausalModel,
    stems: Sequence[_Stem],
    prefix: Prefix | None,
    texts: Sequence[tuple[int, ...]],
    found: list[np.ndarray],
) -> None:
    """Read the stems, then what each text has after its stem."""
    read, cache = model.read([stem.ids for stem in stems], prefix)
    known = len(prefix.ids) if prefix else 0
    wanted: list[_Wanted] = []
    rests: list[tuple[int, int, _Stem]] = []
    for row, stem in enumerate(stems):
        for number in stem.numbers:
            for place in range(stem.prompt, len(stem.ids) + 1):
                token = texts[number][place]
                wanted.append(_Wanted(row, place - 1 - known, token, number, place - stem.prompt))
            if len(texts[number]) > len(stem.ids) + 1:
                rests.append((number, row, stem))
    _look_up(read, wanted, found)
    longest = max((len(texts[number]) for number, _, _ in rests), default=1)
    size = max(1, READ_TOKENS // longest)
    for start in range(0, len(rests), size):
        _fill_rests(model, cache, rests[start : start + size], texts, found)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The log-probability of a token after a place of a row, and where it belongs."""

    row: int
    place: int
    token: int
    number: int
    at: int


def _fill_rests(
    model: CausalModel,
    cache: DynamicCache,
    rests: Sequence[tuple[int, int, _Stem]],
    texts: Sequence[tuple[int, ...]],
    found: list[np.ndarray],
) -> None:
    """Read texts from the end of their stems, whose keys and values are in `cache`."""
    lengths = [len(stem.ids) for _, _, stem in rests]
    more = [texts[number][len(stem.ids) : -1] for number, _, stem in rests]
    read = model.read_on(more, _aligned(cache, [row for _, row, _ in rests], lengths), lengths)
    wanted = [
        _Wanted(at, place, texts[number][len(stem.ids) + place + 1], number, target)
        for at, (number, _, stem) in enumerate(rests)
        for place in range(len(more[at]))
        for target in [len(stem.ids) + place + 1 - stem.prompt]
    ]
    _look_up(read, wanted, found)


def _look_up(read: Read, wanted: Sequence[_Wanted], found: list[np.ndarray]) -> None:
    """Put the log-probabilities where they belong, a few rows of logits at a time."""
    places = list(dict.fromkeys((each.row, each.place) for each in wanted))
    at = {place: number for number, place in enumerate(places)}
    by_chunk: dict[int, list[_Wanted]] = {}
    for each in wanted:
        by_chunk.setdefault(at[each.row, each.place] // LOGITS, []).append(each)
    for chunk, members in by_chunk.items():
        chosen = places[chunk * LOGITS : (chunk + 1) * LOGITS]
        logits_NV = read.logits([row for row, _ in chosen], [place for _, place in chosen])
        rows = [at[each.row, each.place] - chunk * LOGITS for each in members]
        values = _chosen(logits_NV, rows, [each.token for each in members])
        for each, value in zip(members, values, strict=True):
            found[each.number][each.at] = value


@torch.inference_mode()
def _chosen(logits_NV: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> list[float]:
    row, token = torch.tensor(rows), torch.tensor(tokens)
    return (logits_NV[row, token] - logits_NV.logsumexp(1)[row]).tolist()


@torch.inference_mode()
def _aligned(cache: DynamicCache, rows: Sequence[int], lengths: Sequence[int]) -> DynamicCache:
    """Rows of a cache that was padded on the right, aligned at their last places."""
    aligned, width = DynamicCache(), max(lengths)
    for number, pair in enumerate(kept_pairs(cache)):
        moved = []
        for kept in pair:
            new = kept.new_zeros(len(rows), kept.shape[1], width, kept.shape[3])
            for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                new[at, :, width - length :] = kept[row, :, :length]
            moved.append(new)
        aligned.update(moved[0], moved[1], number)
    return aligned
