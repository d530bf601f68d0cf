"""Tables of settings files become frozen dataclasses, strictly.

An unknown key, a missing one or a value of another type is a SettingsError that says where.
"""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from typing import Any

from polyvec.errors import InputError, SettingsError, known


def check_seed(seed: object) -> None:
    """Raises InputError for what numpy and torch do not both take as a seed."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise InputError(f"seed is {seed!r}, expected a whole number from 0")


def fill(kind: type, raw: Mapping[str, Any], where: str) -> Any:
    """A frozen dataclass from a table; unknown, missing and ill-typed keys are errors."""
    return kind(**typed(kind, raw, where))


def table(kind: type, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A dataclass for each entry of a table of tables."""
    if not isinstance(raw, dict):
        raise SettingsError(f"{where} is {raw!r}, not a table")
    return {key: fill(kind, value, f"{where} {key!r}") for key, value in raw.items()}


def typed(
    kind: type, raw: Mapping[str, Any], where: str, *, partial: bool = False
) -> dict[str, Any]:
    """The checked fields of a dataclass from a table; `partial` allows missing ones."""
    if not isinstance(raw, dict):
        raise SettingsError(f"{where} is {raw!r}, not a table")
    hints = typing.get_type_hints(kind)
    known_keys(raw, hints, where)
    for spec in dataclasses.fields(kind):
        required = (
            spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        )
        if required and not partial and spec.name not in raw:
            raise SettingsError(f"{where} key {spec.name!r} is missing")
    return {key: checked(value, hints[key], f"{where} key {key!r}") for key, value in raw.items()}


def known_keys(raw: Mapping[str, Any], names: Collection[str], where: str) -> None:
    """Raises SettingsError, with a suggestion, for a key that is not among the names."""
    for key in raw:
        if key not in names:
            raise SettingsError(f"{where} key {key!r} is not known.{known(key, names)}")


def checked(value: Any, hint: Any, where: str) -> Any:
    """The value if it is of the hinted type: arrays become tuples, whole numbers floats.

    Knows str, bool, int, float, None, Any, Literal, unions, tuple, Sequence, list and Mapping.
    Raises SettingsError that says where, what came and what was expected.
    """
    # The first type of a union that fits: write `int | float`, not `float | int`.
    for option in _options(hint):
        found = _fitted(value, option, where)
        if found is not _MISFIT:
            return found
    names = [_name(option) for option in _options(hint) if option is not types.NoneType]
    raise SettingsError(f"{where} is {value!r}, not {' or '.join(names)}")


_MISFIT = object()  # None is a value


def _options(hint: Any) -> tuple[Any, ...]:
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if union else (hint,)


def _fitted(value: Any, option: Any, where: str) -> Any:
    origin, inner = typing.get_origin(option) or option, typing.get_args(option)
    if option is Any:
        return value
    if origin is typing.Literal:
        # Types are compared too: 1 == True.
        return value if (type(value), value) in [(type(x), x) for x in inner] else _MISFIT
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            return _MISFIT
        if origin is tuple and inner and Ellipsis not in inner:
            items = inner if len(inner) == len(value) else None
        else:
            items = (inner[0] if inner else Any,) * len(value)
        if items is None:
            return _MISFIT
        pairs = enumerate(zip(value, items, strict=True))
        return tuple(checked(each, item, f"{where}[{i}]") for i, (each, item) in pairs)
    if origin is Mapping or origin is dict:
        if not isinstance(value, dict):
            return _MISFIT
        item = inner[1] if inner else Any
        return {key: checked(each, item, f"{where}.{key}") for key, each in value.items()}
    if origin is float and type(value) in (int, float):
        return float(value)
    # Not isinstance: bool is a subclass of int, and True is not an int in a settings file.
    return value if type(value) is origin else _MISFIT


def _name(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(option)))
    return getattr(typing.get_origin(option) or option, "__name__", str(option))
