"""Changes to what decoder layers read, for one forward at a time.

Each layer gets one hook, once, at construction. What the hook does is set by the running forward
through a ContextVar, so threads and backbones can share a model: nobody adds or removes hooks
while another forward runs.

B texts, T tokens of the longest.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyvec.embed.backbone.attention import AttentionPlan
from polyvec.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
# Takes a layer's number, the layer and its arguments, and returns what it gets instead.
Change = Callable[[int, nn.Module, Arguments], Arguments]

_changes: ContextVar[tuple[Change, ...]] = ContextVar("polyvec_layer_changes", default=())


class LayerHook:
    """The hook of one layer. A class of the module and not a closure, so that models pickle."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        changes = _changes.get()
        if not changes:
            return None
        arguments = args, kwargs
        for change in changes:
            arguments = change(self.number, layer, arguments)
        return arguments


def unchanged_layers() -> bool:
    """Whether the forwards of this thread change nothing of what layers read."""
    return not _changes.get()


def install(model: PreTrainedModel) -> None:
    """Give every layer its hook, if it has none from an earlier backbone."""
    for number, layer in enumerate(decoder_layers(model)):
        if not any(isinstance(hook, LayerHook) for hook in layer._forward_pre_hooks.values()):
            layer.register_forward_pre_hook(LayerHook(number), with_kwargs=True)


@contextlib.contextmanager
def changing(model: PreTrainedModel, change: Change) -> Iterator[None]:
    """Inside, `change` applies to the layers of the forwards of this thread."""
    checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    if checkpointing and model.training and torch.is_grad_enabled():
        # Layers are computed again in the backward pass, outside of this block.
        raise ModelError(
            f"{type(model).__name__} needs masks or tokens put into its layers, which gradient "
            "checkpointing would lose; train it without: model.gradient_checkpointing_disable()"
        )
    token = _changes.set((*_changes.get(), change))
    try:
        yield
    finally:
        _changes.reset(token)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model, first to last; ModelError for a family without a list of them."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(f"{type(model).__name__} has no list of {count} layers")


# What the layers of a family take: 0 or a very small number, or True where a token is hidden.
FORMS = ("additive", "hidden")


class LayerMasks:
    """Gives each layer what the plan says as a dense mask, in place of the model's own.

    For families that are not on transformers' AttentionInterface (BLOOM, Falcon, GPT-J, CodeGen,
    GPT-Neo, MPT) or that do not pass the plan on (StableLM, Nemotron). Memory grows with the
    square of the length, so this is the second choice.
    """

    def __init__(self, model: PreTrainedModel, plan: AttentionPlan, form: str) -> None:
        assert plan.real_BT is not None
        self.model, self.plan, self.form, self.real_BT = model, plan, form, plan.real_BT

    def __call__(self, number: int, layer: nn.Module, arguments: Arguments) -> Arguments:
        place = _mask_place(type(layer).forward)
        args, kwargs = arguments
        mask = self._dense(number)
        if len(args) > place:
            return (*args[:place], mask, *args[place + 1 :]), kwargs
        return args, {**kwargs, "attention_mask": mask}

    def _dense(self, number: int) -> Tensor:
        """The mask of a layer, never None: these layers would put a causal one in its place."""
        mode, window = self.plan.modes[number], _window(self.model, number)
        mask = self.plan.mask(mode, window, 0, self.real_BT.device)
        count, length = self.real_BT.shape
        if mask is None:
            mask = self.real_BT.new_ones(count, 1, length, length, dtype=torch.bool)
            mask = mask.tril() if mode == "causal" else mask
        mask = mask.expand(count, -1, -1, -1)
        if self.form == "hidden":
            return ~mask
        dtype = self.model.dtype
        return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)


@functools.cache
def _mask_place(forward: Callable[..., Any]) -> int:
    """The position of `attention_mask` among the arguments of a class's `forward`."""
    names = list(inspect.signature(forward).parameters)[1:]
    if "attention_mask" not in names:
        raise ModelError(f"{forward.__qualname__} takes no attention mask")
    return names.index("attention_mask")


def _window(model: PreTrainedModel, number: int) -> int | None:
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[number] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def open_buffers(model: PreTrainedModel) -> None:
    """Let the mask alone decide in GPT-Neo and CodeGen, which store the causal triangle.

    A band below the diagonal (GPT-Neo's local layers) becomes the band on both sides.
    """
    for module in model.modules():
        for buffer in module.buffers(recurse=False):
            square = buffer.ndim >= 2 and buffer.shape[-1] == buffer.shape[-2]
            if square and buffer.dtype == torch.bool:
                buffer.logical_or_(buffer.transpose(-1, -2).clone())
