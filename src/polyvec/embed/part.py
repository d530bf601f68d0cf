"""Base class of poolings and projections with settings, which are saved as JSON."""

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor, nn

from polyvec.errors import ModelError, SettingsError, known
from polyvec.registry import Fact

# Types of arguments that are filled from the model: the size of its hidden states, and the size
# of the vectors that a projection gets.
HiddenSize = Annotated[int, Fact("hidden_size")]
InFeatures = Annotated[int, Fact("in_features")]


class Part(nn.Module):
    """A module whose constructor's arguments are attributes of the same names.

    `cls(**part.settings())` and then `load_state_dict` give an equal module. Its weights stay
    in float32 or wider whatever the backbone is cast to: `.half()` does not convert them.
    """

    # "sparse" for parts whose vectors are mostly zeros: `encode_vectors` then returns CSR rows.
    output_kind: Literal["dense", "sparse"] = "dense"

    def settings(self) -> dict[str, Any]:
        """The arguments that build this module again, as JSON values."""
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def check_saving(self) -> None:
        """Raises ModelError for a part that would be loaded as another one.

        Its settings must be attributes that build an equal part, and all its tensors must be in
        the state dict.
        """
        name = type(self).__name__
        for key, value in vars(self).items():
            if isinstance(value, Tensor):
                raise ModelError(
                    f"{name}.{key} is a tensor that would not be saved: use register_buffer "
                    "or nn.Parameter"
                )
        try:
            settings = self.settings()
            with torch.random.fork_rng(devices=[]):
                again = type(self)(**settings).settings()
        except (AttributeError, TypeError) as error:
            raise ModelError(
                f"{name} cannot be built again from its settings ({error}): keep each argument of "
                "its constructor as an attribute of the same name"
            ) from None
        if again != settings:
            raise ModelError(f"{name} built from {settings} has other settings: {again}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def at_least_float32(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            narrow = new.is_floating_point() and new.dtype.itemsize < 4
            return tensor.to(new.device) if narrow else new

        return super()._apply(at_least_float32, recurse)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged if it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def one_of(where: str, value: object, choices: Iterable[object]) -> None:
    """Raises SettingsError if `value` is not one of `choices`; `where` names the setting."""
    choices = tuple(choices)
    if value not in choices:
        raise SettingsError(
            f"{where} {value!r} is not known.{known(str(value), map(str, choices))}"
        )


def at_least(least: int, where: str, **values: int) -> None:
    """Raises SettingsError if one of the named values is less than `least`."""
    for name, value in values.items():
        if value < least:
            raise SettingsError(f"{where}: {name} is {value}, expected {least} or more")
