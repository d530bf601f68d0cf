"""The job "log_likelihood": how probable a model finds given tokens of a text.

T tokens of all texts of a piece, N predicted tokens, D state size.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.tokens import TextTokenizer, TokenBatch, Tokens
from polyvec.errors import ModelError, SettingsError
from polyvec.train.engine import Piece
from polyvec.train.language_head import log_probabilities

JOB = "log_likelihood"
BLANK = "_"  # LLM2Vec's mask for tokenizers without one


@dataclass(frozen=True, slots=True)
class Predicted:
    """A text as it is read, and what is predicted in it.

    places: of the states that predict; targets: the token that each predicts.
    """

    tokens: Tokens
    places: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, slots=True)
class Payload:
    """Several texts of a piece, and the attention under which they are read (None: the model's).

    smoothing: share of each token's probability that all tokens of the vocabulary get alike.
    """

    batch: TokenBatch
    places_N: np.ndarray
    targets_N: np.ndarray
    rows_N: np.ndarray
    attention: AttentionSpec | None
    smoothing: float = 0.0


def log_likelihood(embedder: Embedder, payload: Payload) -> Tensor:
    """For each text the sum of its predicted tokens' log-probabilities and their number, [B, 2].

    float32, in nats; the number has no gradient. A loss of the whole batch makes any mean of them.
    """
    backbone = embedder.backbone
    states = backbone(payload.batch, attention=payload.attention)
    states_TD = states.last_BTD[states.attention_mask_BT]
    places_N, targets_N, rows_N = (
        torch.from_numpy(each).to(states_TD.device)
        for each in (payload.places_N, payload.targets_N, payload.rows_N)
    )
    found_N = log_probabilities(
        backbone, states_TD[places_N], targets_N, smoothing=payload.smoothing
    )
    # Zero, but with a gradient where a text has no token to predict.
    start_B = found_N.new_zeros(len(payload.batch.lengths)) + 0 * found_N.sum()
    sums_B = start_B.index_add(0, rows_N, found_N)
    counts_B = torch.zeros_like(sums_B).index_add(0, rows_N, torch.ones_like(found_N))
    return torch.stack([sums_B, counts_B.detach()], dim=1)


def pieces_of(
    examples: Sequence[Predicted],
    *,
    budget: int,
    attention: AttentionSpec | None,
    smoothing: float = 0.0,
    padded: bool = False,
) -> list[Piece]:
    """Pieces of at most `budget` tokens (0: one piece), in order."""
    found = []
    for start, stop in split([len(each.tokens) for each in examples], budget, padded=padded):
        group = examples[start:stop]
        ends = np.cumsum([0, *(len(each.tokens) for each in group)])
        payload = Payload(
            TokenBatch.of(range(len(group)), [each.tokens for each in group]),
            np.concatenate(
                [e.places + begin for e, begin in zip(group, ends, strict=False)]
            ).astype(np.int64),
            np.concatenate([each.targets for each in group]).astype(np.int64),
            np.repeat(np.arange(len(group)), [len(each.places) for each in group]),
            attention,
            smoothing,
        )
        found.append(Piece(JOB, payload, len(group)))
    return found


def split(lengths: Sequence[int], budget: int, *, padded: bool = False) -> list[tuple[int, int]]:
    """Neighbours of at most `budget` tokens together, as (start, stop); 0: all of them.

    Longest first; `padded` counts the padding, too.
    """
    starts, total = [0], 0
    for place, length in enumerate(lengths):
        added = lengths[starts[-1]] if padded else length
        if budget and total + added > budget and place > starts[-1]:
            starts.append(place)
            total, added = 0, length
        total += added
    return list(zip(starts, [*starts[1:], len(lengths)], strict=True)) if lengths else []


def computed(pieces: Sequence[Piece], *, padded: bool) -> int:
    """Tokens that pieces make the model compute, with padding where there is some."""
    lengths = [piece.payload.batch.lengths for piece in pieces]
    return sum(max(each) * len(each) if padded else sum(each) for each in lengths)


def mask_tokens(
    ids: np.ndarray,
    free: np.ndarray,
    draw: np.random.Generator,
    *,
    probability: float,
    mask_id: int,
    num_rows: int,
    replace: str = "mask",
) -> tuple[np.ndarray, np.ndarray]:
    """A text's ids with a share of the `free` ones masked, and the places of these.

    replace: "mask" masks all of them; "bert" 80 %, with a random token of `num_rows` for 10 %, and
    10 % left as they are (Devlin et al. 2019, arXiv:1810.04805).
    """
    chosen = np.flatnonzero(free & (draw.random(len(ids)) < probability))
    masked = ids.copy()
    kind = draw.random(len(chosen)) if replace == "bert" else np.zeros(len(chosen))
    masked[chosen[kind < 0.8]] = mask_id
    other = chosen[(kind >= 0.8) & (kind < 0.9)]
    masked[other] = draw.integers(0, num_rows, len(other))
    return masked, chosen


def limited(tokenizer: TextTokenizer, max_length: int | None) -> TextTokenizer:
    """The tokenizer with a smaller limit while training; the embedder's own keeps its."""
    most = tokenizer.max_length
    if max_length is None or (most is not None and most <= max_length):
        return tokenizer
    found = copy.copy(tokenizer)
    found.max_length = max_length
    return found


def token_id(embedder: Embedder, token: str, setting: str) -> int:
    """The id of a token by its string; SettingsError if the tokenizer has no such token."""
    found = embedder.tokenizer.get_vocab().get(token)
    if found is None:
        raise SettingsError(f"{setting} {token!r} is no token of the tokenizer")
    return int(found)


def check_bidirectional(embedder: Embedder, kind: str) -> None:
    """Raises ModelError for a backbone whose tokens see nothing to the right of them."""
    verdict = embedder.backbone.verdict
    if verdict is not None and not verdict.first_layer:
        raise ModelError(
            f"stage {kind!r}: {type(embedder.backbone.model).__name__} is {verdict}; masked tokens "
            "are predicted from both sides: set [embedder] attention = 'bidirectional'"
        )
