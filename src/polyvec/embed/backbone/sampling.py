"""Text written by a backbone's language model, drawn from its own distribution.

Nothing of the model or of torch's global state changes, so other threads may embed with it at
the same time. V vocabulary, T tokens.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.backbone import Backbone, token_ids
from polyvec.errors import ModelError

TOP_K = 50  # transformers' default, with which the published settings were run


def check_writes(backbone: Backbone) -> None:
    """Raises ModelError for a model that has no head, or is not a causal decoder."""
    name = type(backbone.model).__name__
    if backbone.lm is None:
        raise ModelError(f"variants need a language model; {name} was loaded without its LM head")
    if backbone.model.config.is_encoder_decoder:
        raise ModelError(f"variants need a decoder-only language model, not {name}")
    verdict = backbone.verdict
    if backbone.mechanism == "native" and verdict is not None and verdict.first_layer:
        raise ModelError(f"variants need a causal language model; {name} is {verdict}")


def sample(
    backbone: Backbone,
    ids_T: np.ndarray,
    *,
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
    stop: Callable[[list[int]], bool],
) -> list[int]:
    """New tokens after `ids_T`, until EOS, `stop` of those written so far, or the limit.

    Causal whatever the backbone's attention is. Each step reads the whole text again: texts are
    short, and the states are those of `Backbone.forward`, without a second way to run a model.
    """
    attention = backbone.spec if backbone.mechanism == "native" else AttentionSpec("causal")
    config = getattr(backbone.lm, "generation_config", None) or backbone.model.config
    ends = token_ids(config.eos_token_id)
    written: list[int] = []
    while len(written) < max_new_tokens:
        ids = np.concatenate([ids_T, written]).astype(np.int32)
        logits_V = backbone.next_token_logits(ids, attention)
        token = _drawn(logits_V, temperature, generator)
        if token in ends:
            break
        written.append(token)
        if stop(written):
            break
    return written


def _drawn(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    """A token of the TOP_K likeliest, with transformers' arithmetic and order of steps."""
    logits_V = logits_V.float().cpu() / temperature
    least = logits_V.topk(min(TOP_K, len(logits_V))).values[-1]
    logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    return int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator))
