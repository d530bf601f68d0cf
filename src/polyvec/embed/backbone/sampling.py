"""Text written by a backbone's language model, drawn from its own distribution.

Nothing of the model or of torch's global state changes, so other threads may embed with it at
the same time.
"""

import copy

from polyvec.embed.backbone.attention import NAME
from polyvec.embed.backbone.backbone import Backbone, token_ids
from polyvec.embed.backbone.causal import CausalModel
from polyvec.embed.backbone.decoding import Decoder
from polyvec.embed.backbone.runners import set_attention
from polyvec.embed.backbone.selection import remove_recording_hooks
from polyvec.errors import ModelError

TOP_K = 50  # transformers' default, with which the published settings were run


def check_writes(backbone: Backbone) -> None:
    """Raises ModelError for a model that has no head, or is not a causal decoder."""
    name = type(backbone.model).__name__
    if backbone.lm is None:
        raise ModelError(f"variants need a language model; {name} was loaded without its LM head")
    if backbone.model.config.is_encoder_decoder:
        raise ModelError(f"variants need a decoder-only language model, not {name}")
    if backbone.mechanism == "hooks":
        raise ModelError(
            f"variants need a causal language model; {name} has no causal masks of its own once "
            f"it runs with attention {str(backbone.spec)!r}"
        )
    verdict = backbone.verdict
    if backbone.mechanism == "native" and verdict is not None and verdict.first_layer:
        raise ModelError(f"variants need a causal language model; {name} is {verdict}")


def writer(backbone: Backbone) -> Decoder:
    """What writes with the backbone's weights, causally whatever its attention is.

    A copy of the modules that shares the weights: the backbone's may run our attention function,
    and another thread may be computing with them. Make it anew where the weights may have moved.
    """
    lm = backbone.lm
    weights = {id(weight): weight for weight in (*lm.parameters(), *lm.buffers())}
    lm = copy.deepcopy(lm, weights)
    for model in (lm, lm.base_model):
        remove_recording_hooks(model)
        if model.config._attn_implementation == NAME:
            set_attention(model, "sdpa") or set_attention(model, "eager")
    config = getattr(lm, "generation_config", None) or lm.config
    return Decoder(CausalModel(lm), token_ids(config.eos_token_id))
