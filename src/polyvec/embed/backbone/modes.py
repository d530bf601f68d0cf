"""Evaluation mode for a while."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from torch import nn


class Trainable(Protocol):
    """What is asked of a module: an embedder's protocol must not be an nn.Module."""

    def modules(self) -> Iterator[nn.Module]: ...
    def eval(self) -> object: ...


@contextlib.contextmanager
def evaluating(model: Trainable) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards each module is as it was.

    A model that is not training is left alone: other threads may be computing with it.
    """
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
