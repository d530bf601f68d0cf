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


# Modules that were training, by the number of blocks that hold them in evaluation mode: the
# first thread to finish must not switch dropout on while another one computes.
_HELD: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _modules(model: Trainable) -> Iterator[nn.Module]:
    """`model.modules()`, five times as fast: it makes no names, and a query waits for it."""
    if not isinstance(model, nn.Module):
        yield from model.modules()
        return
    seen, stack = {model}, [model]
    while stack:
        module = stack.pop()
        yield module
        # Not `_modules` itself, which would load the model of a DirectBackbone.
        inside = module.__dict__["_modules"].values()
        found = [each for each in inside if each is not None and each not in seen]
        seen.update(found)
        stack.extend(dict.fromkeys(found))


@contextlib.contextmanager
def evaluating(model: Trainable) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards each module is as it was.

    Threads may share the model: the last one to leave switches it back.
    """
    with _LOCK:
        held = [module for module in _modules(model) if module.training or module in _HELD]
        if any(module.training for module in held):
            model.eval()
        for module in held:
            _HELD[module] = _HELD.get(module, 0) + 1
    try:
        yield
    finally:
        with _LOCK:
            for module in held:
                _HELD[module] -= 1
                if not _HELD[module]:
                    del _HELD[module]
                    module.training = True
