"""Dropout while a stage trains, in place of the model's own.

A decoder has dropout in its attention only, if any, and its config sets it to zero. SimCSE by
dropout needs some: LLM2Vec (arXiv:2404.05961) has 0.3 there.
"""

import contextlib
import re
from collections.abc import Iterator

from torch import nn

from polyvec.errors import SettingsError

# In an attention module, but of what leaves it.
OUTPUT = re.compile(r"out|resid|proj|pos|hidden|post")


@contextlib.contextmanager
def dropout_set(
    model: nn.Module, *, dropout: float | None = None, attention_dropout: float | None = None
) -> Iterator[None]:
    """Inside, the model drops other shares of its states and of its attention weights.

    None leaves what the model has. Raises SettingsError for a share outside [0, 1), and where
    the model has no such dropout.
    """
    places = _places(model)
    before = [(module, name, _value(module, name)) for module, name, _ in places]
    try:
        for of_attention, share in ((False, dropout), (True, attention_dropout)):
            if share is not None:
                _set(model, [(m, n) for m, n, kind in places if kind is of_attention],
                     "attention_dropout" if of_attention else "dropout", share)  # fmt: skip
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def check_views(task: object, model: nn.Module, where: str) -> None:
    """Raises SettingsError if a task that tells two readings of a text apart by dropout has none.

    Both vectors of a text would be equal, so that the loss only pushes the texts apart.
    """
    if not getattr(task, "needs_dropout", False) or _drops(model):
        return
    kinds = {kind for _, _, kind in _places(model)}
    names = [name for name, kind in (("attention_dropout", True), ("dropout", False))
             if kind in kinds]  # fmt: skip
    raise SettingsError(
        f"{where}: no dropout is active, so both vectors of a text would be equal. Set "
        f"{' or '.join(names or ['the dropout of an adapter'])}, such as "
        f"{names[0] if names else 'dropout'} = 0.1"
        + (", or the dropout of the adapter" if names else "")
    )


def _drops(model: nn.Module) -> bool:
    """Whether a share of anything is dropped while training, an adapter's inputs included."""
    adapters = (
        module.p
        for path, module in model.named_modules()
        if isinstance(module, nn.Dropout) and "lora_" in path
    )
    return any(adapters) or any(_value(module, name) for module, name, _ in _places(model))


def _set(model: nn.Module, places: list[tuple[nn.Module, str]], setting: str, share: float) -> None:
    if not 0 <= share < 1:
        raise SettingsError(f"{setting} {share} is not at least 0 and less than 1")
    if not places:
        other = "attention_dropout" if setting == "dropout" else "dropout"
        raise SettingsError(
            f"{setting} does nothing: {type(model).__name__} has no such dropout. Try {other}"
        )
    for module, name in places:
        setattr(module, name, share)


def _places(model: nn.Module) -> list[tuple[nn.Module, str, bool]]:
    """Each number that is a dropout's share: its module, its name, whether it is attention's."""
    found: list[tuple[nn.Module, str, bool]] = []
    for path, module in model.named_modules():
        if "lora_" in path or _is_head(path):
            continue  # an adapter's dropout has a setting of its own
        attends = _is_attention(module)
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout) and "lora_" not in name:
                found.append((child, "p", attends and not _leaves(name)))
        for name, value in vars(module).items():
            if "drop" in name and "layer" not in name and isinstance(value, float):
                found.append((module, name, attends and not _leaves(name)))
    return found


def _is_attention(module: nn.Module) -> bool:
    """Whether a module is the innermost one that attends: MPNet's outer one adds the residual."""
    name = type(module).__name__
    inside = any("Attention" in type(child).__name__ for child in module.children())
    return "Attention" in name and not inside


def _leaves(name: str) -> bool:
    """Whether a dropout of an attention module is one of its output."""
    return OUTPUT.search(name.replace("dropout", "")) is not None


def _is_head(path: str) -> bool:
    return path.startswith("pooler")


def _value(module: nn.Module, name: str) -> float:
    value: float = getattr(module, name)
    return value
