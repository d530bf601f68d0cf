"""Evaluation mode for a while."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Protocol
from weakref import WeakKeyDictionary

from torch import nn


class Trainable(Protocol):
    """What is asked of a module: an embedder's protocol must not be an nn.Module."""

    def modules(self) -> Iterator[nn.Module]: ...
    def eval(self) -> object: ...


Blocks = WeakKeyDictionary[nn.Module, int]
# Modules that were training, by the number of blocks that hold them in evaluation mode: the
# first thread to finish must not switch dropout on while another one computes.
_HELD: Blocks = WeakKeyDictionary()
# Models whose modules have not been looked at, by the number of blocks: `evaluated` does.
_APART: Blocks = WeakKeyDictionary()
_LOCK = threading.Lock()


def _modules(model: Trainable, *, inside: bool) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules, and the models of Backbones apart where those are not looked `inside`.

    A query waits for this, and most call no module of such a model: fused layers have none.
    """
    if not isinstance(model, nn.Module):
        return list(model.modules()), []
    modules: list[nn.Module] = [model]
    apart: list[nn.Module] = []
    for module in modules:  # grows meanwhile
        names = () if inside else getattr(type(module), "evaluated_apart", ())
        # Not `_modules` itself, which would load the model of a DirectBackbone.
        for name, each in module.__dict__["_modules"].items():
            if each is not None:
                (apart if name in names else modules).append(each)
    return [*dict.fromkeys(modules)], [*dict.fromkeys(apart)]


@contextlib.contextmanager
def evaluating(model: Trainable) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards each module is as it was.

    Threads may share the model: the last one to leave switches it back.
    """
    with _LOCK:
        held: list[nn.Module] = []
        modules, apart = _modules(model, inside=False)
        if len(_HELD) or any(module.training for module in (*modules, *apart)):
            modules, apart = _modules(model, inside=True)
            held = [each for each in modules if each.training or each in _HELD]
            if any(module.training for module in held):
                model.eval()
        _count(_HELD, held)
        _count(_APART, apart)
    try:
        yield
    finally:
        with _LOCK:
            _uncount(_APART, apart)
            for module in _uncount(_HELD, held):
                module.training = True


def evaluated(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """For a call of a Backbone's model: evaluation mode in a block of `evaluating`."""
    return evaluating(model) if model in _APART else contextlib.nullcontext()


def _count(blocks: Blocks, modules: list[nn.Module]) -> None:
    for module in modules:
        blocks[module] = blocks.get(module, 0) + 1


def _uncount(blocks: Blocks, modules: list[nn.Module]) -> list[nn.Module]:
    """The modules that no block holds any more."""
    for module in modules:
        blocks[module] -= 1
    free = [module for module in modules if not blocks[module]]
    for module in free:
        del blocks[module]
    return free
