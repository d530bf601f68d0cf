"""Parts by name, for every room: poolings, projections, losses, judges, scorers, inverters ...

A part is a function or a class; its arguments are its settings. It goes by its name in its room's
table, or by "package.module:name" for a user's own. Settings are checked against the signature,
names and types, before any weight loads. What a part needs to know of the model it declares:

    def __init__(self, hidden_size: Annotated[int, Fact("hidden_size")], layer: int) -> None
"""

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from polyvec.errors import SettingsError, known
from polyvec.settings import checked

P = TypeVar("P", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """Marks an argument that is filled with a fact of the model, unless a setting gives it."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a part: its type, whether it must be given, and the fact that fills it."""

    name: str
    hint: Any
    required: bool
    fact: str | None


class Registry(Mapping[str, P], Generic[P]):
    """One room's table of parts of a kind, such as "pooling".

    >>> greetings = Registry("greeting")
    >>> @greetings.register("hello")
    ... def hello(name: str, times: int = 1) -> str:
    ...     return " ".join([f"hello {name}"] * times)
    >>> greetings.build("hello", {"name": "Ada", "times": 2}, where="[demo]")
    'hello Ada hello Ada'
    """

    def __init__(self, kind: str, parts: Mapping[str, P] | None = None) -> None:
        self.kind = kind
        self._parts: dict[str, P] = dict(parts or {})

    def __getitem__(self, name: str) -> P:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def register(self, name: str) -> Callable[[P], P]:
        """Decorates a part and adds it under a name; SettingsError if the name is taken."""

        def add(part: P) -> P:
            if self._parts.setdefault(name, part) is not part:
                raise SettingsError(f"{self.kind} {name!r} is registered twice")
            return part

        return add

    def find(self, name: str, *, where: str = "") -> P:
        """The part of a name in the table, or of "package.module:name".

        Imports the module of the latter: only for names that the user wrote.
        Raises SettingsError, saying where, with a suggestion.
        """
        if name in self._parts:
            return self._parts[name]
        lead = f"{where}: " if where else ""
        if ":" not in name:
            raise SettingsError(
                f"{lead}{self.kind} {name!r} is not known.{known(name, self._parts)}"
            )
        module_name, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise SettingsError(f"{lead}{self.kind} {name!r} cannot be imported: {error}") from None
        if not callable(found):
            raise SettingsError(f"{lead}{self.kind} {name!r} is not a function or a class")
        return typing.cast(P, found)

    def name_of(self, part: Callable[..., Any]) -> str:
        """The name under which `find` returns this part again."""
        for name, each in self._parts.items():
            if each is part:
                return name
        return f"{part.__module__}:{part.__qualname__}"

    def check(self, name: str, settings: Mapping[str, Any], *, where: str) -> None:
        """Raises SettingsError for an unknown part, or settings that it does not take."""
        check_settings(self.find(name, where=where), settings, where=where)

    def build(
        self,
        name: str,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        *,
        where: str,
    ) -> Any:
        """What the part makes of its settings and of the facts that it declares."""
        return build(self.find(name, where=where), settings, facts, where=where)


def arguments(part: Callable[..., Any]) -> list[Argument]:
    """The settings of a part, read from its signature."""
    target = part.__init__ if inspect.isclass(part) else part
    hints = typing.get_type_hints(target, include_extras=True)
    found = []
    for name, parameter in inspect.signature(part).parameters.items():
        hint = hints.get(name, Any)
        facts = [each for each in typing.get_args(hint)[1:] if isinstance(each, Fact)]
        plain = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        required = parameter.default is inspect.Parameter.empty
        found.append(Argument(name, plain, required, facts[0].name if facts else None))
    return found


def check_settings(
    part: Callable[..., Any], settings: Mapping[str, Any], *, where: str
) -> dict[str, Any]:
    """The settings, with TOML's lists as tuples.

    Raises SettingsError for a setting that the part does not take, that is of another type, or
    that is missing and not a fact of the model.
    """
    takes = {each.name: each for each in arguments(part)}
    for key in settings:
        if key not in takes:
            raise SettingsError(f"{where}: setting {key!r} is not known.{known(key, takes)}")
    for name, argument in takes.items():
        if argument.required and argument.fact is None and name not in settings:
            raise SettingsError(f"{where}: setting {name!r} is missing")
    return {
        key: checked(value, takes[key].hint, f"{where}: setting {key!r}")
        for key, value in settings.items()
    }


def build(
    part: Callable[..., Any],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    *,
    where: str,
) -> Any:
    """Call the part with its settings, and with the facts that it declares and they leave open."""
    given = check_settings(part, settings, where=where)
    for argument in arguments(part):
        if argument.fact is None or argument.name in given:
            continue
        value = (facts or {}).get(argument.fact)
        if value is not None:
            given[argument.name] = value
        elif argument.required:
            raise SettingsError(f"{where}: the model has no {argument.fact}, which it needs")
    return part(**given)
