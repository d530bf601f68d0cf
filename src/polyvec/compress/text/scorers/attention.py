"""A scorer by a reader's attention. H heads, Q places that look, T tokens of the context."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyvec.compress.text.document import Asked, Document
from polyvec.compress.text.scorer import SCORERS, How, Scorer, per_unit
from polyvec.errors import InputError, SettingsError
from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL


@SCORERS.register("cross_attention")
@dataclass(frozen=True)
class CrossAttention(Scorer):
    """Mean attention that a reader gives to the tokens of a unit.

    An encoder-decoder (T5): the decoder's cross-attention in its first `steps` steps, over layers
    and heads, question and text being read together: token elimination in Fusion-in-Decoder
    readers (Berchansky et al. 2023, arXiv:2310.13682). A decoder: the attention of the question's
    tokens, which are read after the text, in the last `layers` layers. Long texts are read in
    windows of `window` tokens, whose values are compared as they are.
    """

    needs_question = True

    model: str = DEFAULT_LANGUAGE_MODEL
    steps: int = 4
    layers: int | None = None
    window: int = 512
    how: How = "mean"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.window < 16:
            raise SettingsError("scorer 'cross_attention': steps from 1, window from 16")

    @property
    def tokenizer(self) -> str | None:
        return self.model

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        model, tokenizer, encoder = _reader(self.model)
        question = encoder.encode(asked.question or "", add_special_tokens=False).ids
        if len(question) > self.window:
            raise InputError(
                f"the question has {len(question)} tokens, a window {self.window}; shorten it"
            )
        encoded = encoder.encode(document.text, add_special_tokens=False)
        look = _cross if model.config.is_encoder_decoder else _self
        values = [np.zeros(0)]
        for start in range(0, len(encoded.ids), self.window):
            ids = encoded.ids[start : start + self.window]
            values.append(look(self, model, tokenizer, ids, question))
        return per_unit(encoded.offsets, np.concatenate(values), document.units, self.how)


def _cross(
    settings: CrossAttention, model: Any, tokenizer: Any, ids: list[int], question: list[int]
) -> np.ndarray:
    """Attention of the decoder's first steps to the text, which follows the question, [T]."""
    import torch

    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    given_BT = torch.tensor([[*question, *ids, *end]], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            given_BT,
            max_new_tokens=settings.steps,
            do_sample=False,
            num_beams=1,
            output_attentions=True,
            return_dict_in_generate=True,
        )
    # A step has a tensor [1, H, 1, T] for each layer.
    steps = [torch.stack(step)[-(settings.layers or 0) :] for step in out.cross_attentions]
    mean_T = torch.stack([step.float().mean(dim=(0, 1, 2, 3)) for step in steps]).mean(dim=0)
    return mean_T[len(question) : len(question) + len(ids)].double().cpu().numpy()


def _self(
    settings: CrossAttention, model: Any, tokenizer: Any, ids: list[int], question: list[int]
) -> np.ndarray:
    """Attention of the question's tokens to the text before it, [T]."""
    import torch

    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    given_BT = torch.tensor([[*first, *ids, *question]], device=model.device)
    with torch.inference_mode():
        out = model(given_BT, output_attentions=True, use_cache=False)
    attention_LHQT = torch.cat(out.attentions[-(settings.layers or 0) :]).float()
    mean_T = attention_LHQT[:, :, -len(question) :].mean(dim=(0, 1, 2))
    return mean_T[len(first) : len(first) + len(ids)].double().cpu().numpy()


@functools.lru_cache(2)
def _reader(name: str) -> tuple[Any, Any, Any]:
    """Model, tokenizer and bare tokenizer of a reader whose attention can be seen."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    from polyvec.embed.backbone.quiet import quiet_transformers
    from polyvec.embed.formats.devices import best_device
    from polyvec.embed.formats.sources import model_folder
    from polyvec.embed.formats.tokenizer import load_tokenizer
    from polyvec.embed.formats.transformer import load_config, load_transformer
    from polyvec.embed.inputs.contract import bare

    root = model_folder(name, namespace=None)
    if load_config(root).is_encoder_decoder:
        with quiet_transformers():
            model = AutoModelForSeq2SeqLM.from_pretrained(
                root, dtype=torch.float32, use_safetensors=True
            )
    else:
        model = load_transformer(root, torch.float32, kind="lm")
    # Other kernels do not give the weights of attention.
    model.set_attn_implementation("eager")
    tokenizer = load_tokenizer(root)
    return model.to(best_device()).eval(), tokenizer, bare(tokenizer, specials_are_text=True)
