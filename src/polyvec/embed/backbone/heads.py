"""The head of a language model: the step from hidden states to logits over the vocabulary.

A masked language model's head is more than its output matrix: BERT's has a dense layer, an
activation, a norm and a bias before and after it, DistilBERT's, ModernBERT's and MPNet's are
built otherwise. So the model's own forward is run, with its body replaced by the states.

D state size, V vocabulary.
"""

import copy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from polyvec.errors import ModelError

MASKED = frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())


class _Output(BaseModelOutput):
    """A body's output that has nothing but states; a family's own side outputs are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Given(nn.Module):
    """A stand-in for a body: its output are the states that it gets as `inputs_embeds`.

    What a head reads from the body (DeBERTa: the word embeddings) is the body's own.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        # Not a submodule: the stand-in has no weights of its own.
        object.__setattr__(self, "body", body)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutput:
        return _Output(last_hidden_state=inputs_embeds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["body"], name)


def has_own_head(lm: PreTrainedModel) -> bool:
    """Whether logits take more than the output matrix: all masked models, and BERT as a decoder."""
    name = type(lm).__name__
    output = lm.get_output_embeddings()
    masked = name in MASKED or name.endswith("ForMaskedLM")
    return masked or not any(child is output for child in lm.children())


def head_modules(lm: PreTrainedModel) -> nn.Module:
    """The head's modules, which move and are hashed with the model."""
    if not has_own_head(lm):
        output: nn.Module = lm.get_output_embeddings()
        return output
    return nn.ModuleList(child for child in lm.children() if child is not lm.base_model)


def own_logits(lm: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits of states [..., D] by the model's own code, [..., V]; its body is not run.

    Nothing in the model changes, so threads may share it. Raises ModelError for a model whose
    forward cannot be given states.
    """
    body = lm.base_model
    names = [name for name, child in lm.named_children() if child is body]
    if not names or lm.config.is_encoder_decoder:
        raise ModelError(f"{type(lm).__name__}: its head cannot be run on hidden states")
    head = copy.copy(lm)
    head.__dict__["_modules"] = {**lm._modules, names[0]: _Given(body)}
    logits: Tensor = head(inputs_embeds=states.reshape(1, -1, states.shape[-1])).logits
    return logits.reshape(*states.shape[:-1], -1)
