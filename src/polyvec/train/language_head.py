"""The language model's head, for stages that predict tokens with an embedder that pools states."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.heads import head_modules
from polyvec.embed.embedder import Embedder
from polyvec.embed.formats.families import family_of
from polyvec.embed.formats.transformer import load_transformer
from polyvec.errors import ModelError

NUM_LOGITS = 2**24  # that exist at a time: 64 MB in float32


def attach_head(embedder: Embedder) -> None:
    """Give the backbone the head that its checkpoint has; nothing if it has it already.

    Afterwards `embedder.backbone.logits` works, and `save_pretrained` writes the whole language
    model. Raises ModelError for a checkpoint without one.
    """
    backbone = embedder.backbone
    if backbone.lm is not None:
        return
    body: Any = backbone.model
    # The config still knows the folder where an adapter was merged since.
    name, source = type(body).__name__, body.config.name_or_path or body.name_or_path
    if body.config.is_encoder_decoder or name.startswith("T5"):
        raise ModelError(f"{name} is half of an encoder-decoder, which has no head of its own")
    if not source or not Path(source).exists():
        raise ModelError(
            f"{name}: the checkpoint with its language model's head ({source or 'unknown'}) is not "
            "there; build the embedder from a folder with a language model"
        )
    folder = Path(source)
    lm: Any = load_transformer(folder, kind="lm", family=family_of(folder))
    if type(lm.base_model) is not type(body):
        raise ModelError(
            f"{folder}: its language model is on {type(lm.base_model).__name__}, not on {name}"
        )
    table = _table(body)
    _fit_rows(lm, len(table))
    (place,) = [key for key, child in lm.named_children() if child is lm.base_model]
    setattr(lm, place, body)
    lm.config = body.config
    if getattr(body.config.get_text_config(), "tie_word_embeddings", False):
        lm.get_output_embeddings().weight = table
    lm.to(backbone.device, table.dtype)
    lm.eval()
    backbone.lm_head = head_modules(lm)
    object.__setattr__(backbone, "lm", lm)


def _fit_rows(lm: Any, count: int) -> None:
    """Logits of tokens that were added since: at first the mean of the others' rows."""
    before = lm.get_output_embeddings().weight.shape[0]
    if before == count:
        return
    lm.resize_token_embeddings(count, mean_resizing=False)
    with torch.no_grad():
        weight = lm.get_output_embeddings().weight
        weight[before:] = weight[:before].mean(dim=0)


def _table(body: Any) -> nn.Parameter:
    """The table of token embeddings itself, under an adapter of some of its rows, too."""
    return next(
        each
        for name, each in body.get_input_embeddings().named_parameters()
        if name.endswith("weight")
    )


def causal(backbone: Backbone) -> AttentionSpec | None:
    """The attention under which a backbone predicts the next token.

    None where it is causal as it is and cannot be switched. Raises ModelError for a model that
    is neither.
    """
    if backbone.mechanism != "native":
        return AttentionSpec("causal")
    if not backbone.measured:  # a dry run, whose model has no weights to be measured with
        return None
    if backbone.verdict is None or backbone.verdict.first_layer:
        raise ModelError(
            f"{type(backbone.model).__name__} sees later tokens ({backbone.layout_reason}), so it "
            "cannot learn to predict the next one"
        )
    return None


def log_probabilities(
    backbone: Backbone, states_ND: Tensor, targets_N: Tensor, *, smoothing: float = 0.0
) -> Tensor:
    """Log-probability of each target by the state that predicts it, float32 [N], in nats.

    With `smoothing` that share of it is the mean over the vocabulary (label smoothing).

    The logits of a few states at a time exist, in the backward pass too: all together they
    would be the largest tensor of a step.
    """

    def of(chunk_ND: Tensor, chunk_N: Tensor) -> Tensor:
        logits_NV = backbone.logits(chunk_ND).float()
        chosen_N = logits_NV.gather(1, chunk_N[:, None])[:, 0]
        if smoothing:
            chosen_N = (1 - smoothing) * chosen_N + smoothing * logits_NV.mean(1)
        return chosen_N - logits_NV.logsumexp(1)

    rows = max(1, NUM_LOGITS // (backbone.num_rows or 1))
    again = len(states_ND) > rows and torch.is_grad_enabled()
    found = [
        checkpoint(of, *each, use_reentrant=False) if again else of(*each)
        for each in zip(states_ND.split(rows), targets_N.split(rows), strict=True)
    ]
    return torch.cat(found)
