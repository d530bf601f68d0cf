"""Tables of settings files become frozen dataclasses, strictly.

An unknown key, a missing one or a value of another type is a SettingsError that says where.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from polyvec.errors import SettingsError, known


def fill(kind: type, raw: Mapping[str, Any], where: str) -> Any:
    """A frozen dataclass from a table; unknown, missing and ill-typed keys are errors."""
    return kind(**typed(kind, raw, where))


def table(kind: type, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {key: fill(kind, value, f"{where} {key!r}") for key, value in raw.items()}


def typed(
    kind: type, raw: Mapping[str, Any], where: str, *, partial: bool = False
) -> dict[str, Any]:
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
    return {key: _checked(value, hints[key], f"{where} key {key!r}") for key, value in raw.items()}


def known_keys(raw: Mapping[str, Any], names, where: str) -> None:
    for key in raw:
        if key not in names:
            raise SettingsError(f"{where} key {key!r} is not known.{known(key, names)}")


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value if it is of the hinted type; TOML arrays become tuples."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if hint is Any:
        return value
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is tuple and isinstance(value, list):
            inner = typing.get_origin(typing.get_args(option)[0]) or typing.get_args(option)[0]
            if inner is float and all(type(v) in (int, float) for v in value):
                return tuple(float(v) for v in value)
            if inner is not float and all(
                isinstance(v, dict if inner is Mapping else str) for v in value
            ):
                return tuple(value)
        if origin is Mapping and isinstance(value, dict):
            return {
                k: _checked(v, typing.get_args(option)[1], f"{where}.{k}") for k, v in value.items()
            }
        if origin is float and type(value) in (int, float):
            return float(value)
        if origin is not Mapping and type(value) is origin:
            return value
    names = [getattr(o, "__name__", str(o)) for o in options if o is not types.NoneType]
    raise SettingsError(f"{where} is {value!r}, not {' or '.join(names)}")
