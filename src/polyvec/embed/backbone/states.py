"""What a pooling gets from a backbone: hidden states, and the side outputs it needs.

B texts, T tokens of the longest, D state size, H heads, E experts, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# What a pooling may need beside the last layer's states; it names them in `needs`.
SIDE_OUTPUTS = (
    "all_layers",
    "attentions",
    "router",
    "router_logits",
    "lm_head",
    "decoder_start",
    "generate",
)


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states of a batch, [B, T, D], and masks [B, T] that say what a token is.

    `attention_mask_BT` marks real tokens, `pooling_mask_BT` those that are pooled, `text_mask_BT`
    those of the user's text (not the prompt's, not special tokens). Side outputs are None unless
    needed: `all_layers` are the states of the word embeddings and of every
    layer, the last normalised as in `last_BTD`; `attentions` each layer's weights, [B, H, T, T];
    `router` the softmax over experts of each layer that has them, [B, T, E], `router_logits` the
    same without softmax; `lm_head` turns
    states [..., D] into next-token logits [..., V]; `decoder_start` is an
    encoder-decoder's decoder state at its start token, [B, D]; `generate` writes up to n tokens
    greedily and returns the states that chose them, [B, n, D], and which are real, [B, n].
    `word_ids` are the ids of each text's content words, for poolings that read them.
    """

    last_BTD: Tensor
    attention_mask_BT: Tensor
    pooling_mask_BT: Tensor
    text_mask_BT: Tensor
    ids_BT: Tensor
    all_layers: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    router: tuple[Tensor, ...] | None = None
    router_logits: tuple[Tensor, ...] | None = None
    lm_head: Callable[[Tensor], Tensor] | None = None
    decoder_start: Tensor | None = None
    generate: Callable[[int], tuple[Tensor, Tensor]] | None = None
    word_ids: tuple[Tensor, ...] = ()
