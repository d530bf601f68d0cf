"""Late chunking: a document is read as a whole, and its chunks are pooled from its tokens' states.

So a chunk's vector knows what the document says around it (Günther et al. 2024, arXiv:2409.04701).
C chunks, T tokens of a document, D state size, E vector size.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.backbone.modes import evaluating
from polyvec.embed.embedder import Embedder
from polyvec.embed.encoding import BATCH_TOKENS, check_text
from polyvec.embed.inputs.tokens import TokenBatch, Tokens, budget_batches
from polyvec.embed.pooling.functions import pool
from polyvec.embed.projection import quantization
from polyvec.errors import InputError, ModelError
from polyvec.interfaces import Prompt, PromptChoice

# Of chunks these are what they are of texts. "first" is not: a chunk begins with a word's state,
# where the model was trained to pool [CLS]. "weighted_mean" counts from the document's start.
POOLED = ("max", "mean", "mean_sqrt_len", "weighted_mean_text", "last")
GROUP = 64  # documents whose states are in memory at a time
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Document:
    """A document's tokens behind the prompt's, and the windows in which they are read.

    owned: of each window the tokens whose states are taken from it, as first and end.
    """

    ids: np.ndarray
    spans: list[Range]
    prompt_ids: np.ndarray
    windows: tuple[Range, ...]
    owned: tuple[Range, ...]


def late_chunk_vectors(
    embedder: Embedder,
    documents: Sequence[str],
    ranges: Sequence[Sequence[Range]],
    *,
    overlap: int | None = None,
    batch_tokens: int | None = None,
    **prompt: Unpack[PromptChoice],
) -> list[np.ndarray]:
    """A vector for each chunk of each document, float32 [C, E].

    ranges: of each document its chunks, as (start, end) in characters. A token is of the chunk in
    which it ends. The prompt is that of documents, unless the call says another. Special tokens
    and the prompt are read once around the whole document: those before it are pooled with the
    chunk of its first token, those behind it with that of its last, so that one chunk of all the
    text has the vector that `encode_document` gives.

    A document that is longer than the model reads is read in windows that share `overlap` tokens
    (a quarter of a window by default), each with the prompt and special tokens around it. A token's
    state is that of the window in which it is further from the edge: of a shared stretch, the
    first half of the earlier window, the second half of the later one.

    Poolings are those that a stretch of a text can have (`POOLED`); "last" only of a causal model
    without a token behind the text, whose last state has read all before it. Raises ModelError
    for another pooling, or a template; InputError, with its place, for
    a chunk without tokens.

    >>> from polyvec import Embedder
    >>> text = "Berlin is in Germany. It has 3.8 million people."
    >>> late_chunk_vectors(Embedder(), [text], [[(0, 21), (22, len(text))]])[0].shape
    (2, 384)
    """
    check_late_chunking(embedder)
    model = embedder.for_role(prompt.get("role") or "document")
    assert isinstance(model, Embedder)
    found = embedder.prompt_for(
        prompt.get("prompt"), prompt.get("prompt_name"), prompt.get("role") or "document"
    )
    if len(ranges) != len(documents):
        raise InputError(f"late chunking: {len(ranges)} lists of chunks for {len(documents)} texts")
    out: list[np.ndarray] = []
    for start in range(0, len(documents), GROUP):
        texts = documents[start : start + GROUP]
        read = [
            _read(model, check_text(text, start + place), found, overlap)
            for place, text in enumerate(texts)
        ]
        budget = batch_tokens or BATCH_TOKENS.get(model.device.type, 8192)
        with evaluating(model), torch.inference_mode():
            for place, states in enumerate(_states(model, read, found, budget)):
                own = list(ranges[start + place])
                out.append(_vectors(model, read[place], states, own, found, start + place))
    return out


def check_late_chunking(embedder: object) -> None:
    """Raises InputError or ModelError for a model whose vectors are not pooled of a stretch."""
    if not isinstance(embedder, Embedder):
        kind = type(embedder).__name__
        raise InputError(f"late chunking: {kind} has no states to pool; expected an Embedder")
    for model in (embedder, *embedder.routes.values()):
        wrong = None
        if model.pooling_module is not None:
            wrong = f"pools with {type(model.pooling_module).__name__}"
        elif model.template is not None or model.variants is not None:
            wrong = "reads a text by a template or in several forms"
        elif not set(model.pooling) <= set(POOLED):
            wrong = f"pools by {'+'.join(model.pooling)}, which a stretch of a text does not have"
        elif "last" in model.pooling:
            wrong = _why_not_last(model)
        if wrong:
            raise ModelError(
                f"late chunking: the model {wrong}; take one that pools by "
                f"{', '.join(POOLED[:-1])}, or embed chunks by themselves"
            )


def _why_not_last(model: Embedder) -> str | None:
    if model.text_tokenizer.contract.suffix:
        return "pools the state of a token behind the text, which a chunk does not have"
    verdict = model.backbone.verdict
    if verdict is None or verdict.first_layer:
        return "pools the last state, and is not causal"
    return None


def _read(model: Embedder, text: str, prompt: Prompt, overlap: int | None) -> _Document:
    words = model.text_tokenizer
    if prompt.text and not words.parses_texts and words.has_special(prompt.text):
        raise ModelError(f"late chunking: the prompt {prompt.text!r} holds special tokens")
    ids, spans = words.ids_and_spans(prompt.text + text)
    size = len(prompt.text)
    if prompt.text and not model.pool_prompt:  # as many as it has alone: see prompts.render
        num = len(words.ids_and_spans(prompt.text)[0])
    else:  # a token across the boundary belongs to the text it ends in
        num = sum(max(end - 1, start) < size for start, end in spans) if size else 0
    own = [(max(start - size, 0), end - size) for start, end in spans[num:]]
    contract = words.contract
    room = len(own)
    if contract.max_length is not None:
        room = contract.max_length - len(contract.prefix) - len(contract.suffix) - num
    if room < 1 and len(own):
        raise InputError(f"late chunking: the prompt of {num} tokens leaves no room for a text")
    windows, owned = _windows(len(own), room, overlap)
    return _Document(ids[num:], own, ids[:num], windows, owned)


def _windows(
    num: int, room: int, overlap: int | None
) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """Windows of `room` tokens over `num`, and the tokens that each of them owns."""
    if num <= room:
        return ((0, num),), ((0, num),)
    shared = room // 4 if overlap is None else overlap
    if not 0 <= shared < room:
        raise InputError(f"overlap is {overlap}, expected 0 to {room - 1}: a window has {room}")
    starts = [*range(0, num - room, room - shared), num - room]
    windows = tuple((start, start + room) for start in starts)
    # The middle of what two windows share.
    cuts = [(later[0] + earlier[1]) // 2 for earlier, later in itertools.pairwise(windows)]
    return windows, tuple(itertools.pairwise([0, *cuts, num]))


def _states(
    model: Embedder, read: Sequence[_Document], prompt: Prompt, budget: int
) -> Iterator[Tensor]:
    """States of each document's tokens, with those around it, [T, D], on the CPU."""
    contract = model.text_tokenizer.contract
    prefix = np.asarray(contract.prefix, np.int32)
    suffix = np.asarray(contract.suffix, np.int32)
    inputs = [
        np.concatenate([prefix, each.prompt_ids, each.ids[start:end], suffix])
        for each in read
        for start, end in each.windows
    ]
    found: dict[int, Tensor] = {}
    for places in budget_batches([len(ids) for ids in inputs], batch_tokens=budget):
        batch = TokenBatch.of(places, [_tokens(inputs[place]) for place in places])
        with torch.autocast(model.device.type, enabled=False):
            states_BTD, mask_BT = model.token_states(batch)
        for place, states_TD, mask_T in zip(places, states_BTD, mask_BT, strict=True):
            found[place] = states_TD[mask_T.bool()].float().cpu()
    windows = iter(range(len(inputs)))
    for each in read:
        before = len(prefix) + len(each.prompt_ids)
        parts: list[Tensor] = []
        for (start, _), (first, end) in zip(each.windows, each.owned, strict=True):
            states_TD = found[next(windows)]
            low = before + first - start if first else 0
            last = end == len(each.ids)
            parts.append(states_TD[low : None if last else before + end - start])
        yield torch.cat(parts)


def _tokens(ids: np.ndarray) -> Tokens:
    yes = np.ones(len(ids), bool)
    return Tokens(ids, yes, yes, np.zeros(len(ids), np.int8), len(ids))


def _vectors(
    model: Embedder,
    read: _Document,
    states_TD: Tensor,
    ranges: Sequence[Range],
    prompt: Prompt,
    place: int,
) -> np.ndarray:
    """The vectors of one document's chunks, [C, E]."""
    before = len(model.text_tokenizer.contract.prefix) + len(read.prompt_ids)
    ends = np.array([max(end - 1, start) for start, end in read.spans], np.int64)
    # What is not pooled before the text: the prompt, and what stands before it, in `render`.
    head = 0 if model.pool_prompt or not prompt.text else before
    vectors: list[Tensor] = []
    for start, end in ranges:
        rows = np.flatnonzero((ends >= start) & (ends < end))
        whole = not len(ends) and model.zero_if_empty
        if not len(rows) and not whole:
            raise InputError(
                f"documents[{place}]: the chunk ({start}, {end}) has no token of its own; leave it "
                "out, or join it with a neighbour"
            )
        first, last = (rows[0], rows[-1]) if len(rows) else (0, -1)
        low = head if first == 0 else before + int(first)
        high = len(states_TD) if last == len(ends) - 1 else before + int(last) + 1
        part_1TD = states_TD[None, low:high]
        mask_1T = torch.ones(part_1TD.shape[:2], dtype=torch.bool)
        vectors.append(pool(model.pooling, part_1TD, mask_1T, mask_1T, zero_if_empty=whole)[0])
    if not vectors:
        return np.zeros((0, model.get_embedding_dimension()), np.float32)
    vectors_CE = torch.stack(vectors).to(model.device, model.dtype)
    for step in model.projections:
        vectors_CE = step(vectors_CE)
    vectors_CE = vectors_CE.float().cpu()
    if not bool(torch.isfinite(vectors_CE).all()):
        raise ModelError(f"a chunk's vector of documents[{place}] holds NaN or infinity")
    kept: np.ndarray = quantization.truncate(
        vectors_CE, model.truncate_dim, renormalize=model.normalizes
    ).numpy()
    return kept
