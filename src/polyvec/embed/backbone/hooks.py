"""Attention plans for families that are not on transformers' AttentionInterface.

Each decoder layer gets a dense mask through a hook before its forward: BLOOM, Falcon,
GPT-J, CodeGen, GPT-Neo, MPT, and those that drop the plan on its way (StableLM, Nemotron).
Memory grows with the square of the length, so this is the second choice.
"""

import contextlib
import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyvec.embed.backbone.attention import AttentionPlan
from polyvec.errors import ModelError


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model, first to last; ModelError for a family that keeps none in a list."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(f"{type(model).__name__} keeps no list of {count} layers")


# What the layers of a family want: 0 or a very small number, or True where a token is hidden.
FORMS = ("additive", "hidden")


@contextlib.contextmanager
def masked_layers(model: PreTrainedModel, plan: AttentionPlan, form: str) -> Iterator[None]:
    """While inside, every layer sees what the plan says instead of the model's own mask."""
    assert plan.real_BT is not None
    hooks = []
    for number, layer in enumerate(decoder_layers(model)):
        mask = plan.mask(plan.modes[number], _window(model, number), 0, plan.real_BT.device)
        hooks.append(_hook(layer, _dense(mask, plan, number, model.dtype, form)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def open_buffers(model: PreTrainedModel) -> None:
    """GPT-Neo and CodeGen keep the causal triangle in a buffer: let the mask alone decide.

    A band below the diagonal (GPT-Neo's local layers) becomes the band on both sides.
    """
    for module in model.modules():
        for buffer in module.buffers(recurse=False):
            square = buffer.ndim >= 2 and buffer.shape[-1] == buffer.shape[-2]
            if square and buffer.dtype == torch.bool:
                buffer.logical_or_(buffer.transpose(-1, -2).clone())


def _window(model: PreTrainedModel, number: int) -> int | None:
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[number] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def _dense(
    mask: Tensor | None, plan: AttentionPlan, number: int, dtype: torch.dtype, form: str
) -> Tensor:
    """The mask of a layer with nothing left out: these layers would fill in a causal one."""
    assert plan.real_BT is not None
    if mask is None:
        count, length = plan.real_BT.shape
        mask = torch.ones(count, 1, length, length, dtype=torch.bool, device=plan.real_BT.device)
        if plan.modes[number] == "causal":
            mask = mask.tril()
    mask = mask.expand(plan.real_BT.shape[0], -1, -1, -1)
    return ~mask if form == "hidden" else torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)


def _hook(layer: nn.Module, mask: Tensor):
    names = list(inspect.signature(type(layer).forward).parameters)[1:]
    if "attention_mask" not in names:
        raise ModelError(f"{type(layer).__name__} takes no attention mask")
    place = names.index("attention_mask")

    def put_in(module, args, kwargs):
        if len(args) > place:
            return (*args[:place], mask, *args[place + 1 :]), kwargs
        return args, {**kwargs, "attention_mask": mask}

    return layer.register_forward_pre_hook(put_in, with_kwargs=True)
