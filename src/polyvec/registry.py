"""Parts by name, for every room: poolings, projections, templates, losses, judges, scorers ...

A part is a function or a class; its arguments are its settings. It is found by its name in a
table, or as "package.module:name" in a user's own package. Settings are checked against the
signature, names and types, before any weight loads. An argument that depends on the model
declares the fact that fills it:

    def __init__(self, hidden_size: Annotated[int, Fact("hidden_size")], layer: int) -> None
"""

import dataclasses
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from polyvec.errors import SettingsError, known
from polyvec.settings import checked

P = TypeVar("P")


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """Marks an argument that is filled with a fact of the model, unless a setting gives it.

    `of`: the fact is a function of another setting, a list of strings: token ids of `tokens`.
    `when`: the argument is filled only if a setting has this value, as ("over", "all_layers").
    """

    name: str
    of: str | None = None
    when: tuple[str, Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a part: its type, whether it is required, and the fact that fills it."""

    name: str
    hint: Any
    required: bool
    fact: Fact | None


class Registry(Mapping[str, P], Generic[P]):
    """The table of all parts of a kind, such as "pooling".

    `accepts` tells whether an imported object is of the kind, `expected` names it in errors.
    `elsewhere`: parts of rooms that this one may not import, as "module:name"; they are imported
    when they are used.

    >>> greetings = Registry("greeting")
    >>> @greetings.register("hello")
    ... def hello(name: str, times: int = 1) -> str:
    ...     return " ".join([f"hello {name}"] * times)
    >>> greetings.build("hello", {"name": "Ada", "times": 2}, where="[demo]")
    'hello Ada hello Ada'
    """

    def __init__(
        self,
        kind: str,
        parts: Mapping[str, P] | None = None,
        *,
        accepts: Callable[[Any], bool] = callable,
        expected: str = "a function or a class",
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        self.kind, self.elsewhere = kind, dict(elsewhere or {})
        self.accepts, self.expected = accepts, expected
        self._parts: dict[str, P] = dict(parts or {})

    def __getitem__(self, name: str) -> P:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def register(self, name: str) -> Callable[[P], P]:
        """A decorator that adds a part under a name; SettingsError if the name is taken."""

        def add(part: P) -> P:
            self._check_kind(part, f"{self.kind} {name!r}")
            # Registering the same part again under its name changes nothing.
            if self._parts.setdefault(name, part) is not part:
                raise SettingsError(f"{self.kind} {name!r} is already registered")
            return part

        return add

    def find(self, name: str, *, where: str = "") -> P:
        """The part of a name in the table, or of "package.module:name".

        Imports the module of the latter, so call it only with a name that the user wrote, or
        for a folder that the user trusts. Raises SettingsError with a suggestion.
        """
        label = f"{where}: {self.kind} {name!r}" if where else f"{self.kind} {name!r}"
        if not isinstance(name, str):
            raise SettingsError(f"{label} is {type(name).__name__}, expected a name")
        if name in self._parts:
            return self._parts[name]
        name = self.elsewhere.get(name, name)
        if ":" not in name:
            names = {*self._parts, *self.elsewhere}
            raise SettingsError(f"{label} is not known.{known(name, names)}")
        module_name, _, attributes = name.partition(":")
        try:
            module = importlib.import_module(module_name)
            found = functools.reduce(getattr, attributes.split("."), module)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a module may raise anything
            plain = isinstance(error, ImportError | AttributeError | ValueError)
            reason = str(error) if plain else f"{type(error).__name__} {error}"
            raise SettingsError(
                f"{label} cannot be imported: {reason}. Is its package installed, or its folder "
                "on PYTHONPATH?"
            ) from None
        self._check_kind(found, label)
        return typing.cast(P, found)

    def name_of(self, part: P) -> str:
        """The name under which `find` returns this part again.

        Raises SettingsError for a part that is not registered and that cannot be imported.
        """
        for name, each in self._parts.items():
            if each is part:
                return name
        module, path = getattr(part, "__module__", None), getattr(part, "__qualname__", "")
        # Another program has another __main__, a function's locals end with its call.
        if module in (None, "__main__") or not path or "<" in path:
            raise SettingsError(
                f"{self.kind} {path or part!r} cannot be imported by another program: move it "
                "to the top level of a module, or register it under a name"
            )
        return f"{module}:{path}"

    def check(self, name: str, settings: Mapping[str, Any], *, where: str) -> None:
        """Raises SettingsError for an unknown part or settings that it does not take."""
        part = typing.cast(Callable[..., Any], self.find(name, where=where))
        check_settings(part, settings, where=f"{where} {self.kind} {name!r}".lstrip())

    def build(
        self,
        name: str,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        *,
        where: str,
    ) -> Any:
        """Call the part with its settings and with the facts that it declares."""
        part = typing.cast(Callable[..., Any], self.find(name, where=where))
        return build(part, settings, facts, where=f"{where} {self.kind} {name!r}".lstrip())

    def _check_kind(self, found: Any, label: str) -> None:
        if not self.accepts(found):
            raise SettingsError(f"{label} is {type(found).__name__}, expected {self.expected}")


def arguments(part: Callable[..., Any]) -> list[Argument]:
    """The settings of a part, read from its signature; *args and **kwargs are none."""
    target = part.__init__ if inspect.isclass(part) else part
    try:
        # include_extras keeps Annotated, in which facts are declared.
        hints = typing.get_type_hints(target, include_extras=True)
    except NameError as error:  # a name that is imported for type checkers only
        raise SettingsError(f"{part.__module__}: cannot read the type hints: {error}") from None
    found = []
    for name, parameter in inspect.signature(part).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = hints.get(name, Any)
        facts = [each for each in typing.get_args(hint)[1:] if isinstance(each, Fact)]
        if typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        required = parameter.default is inspect.Parameter.empty
        found.append(Argument(name, hint, required, facts[0] if facts else None))
    return found


def check_settings(
    part: Callable[..., Any], settings: Mapping[str, Any], *, where: str
) -> dict[str, Any]:
    """The settings, with TOML's arrays as tuples.

    Raises SettingsError for a setting that the part does not take, that has another type, or
    that is missing and not a fact of the model.
    """
    takes = arguments(part)
    hints = {each.name: each.hint for each in takes}
    # The setting behind a fact, such as `tokens` of `token_ids`, is not an argument.
    hints |= {each.fact.of: Sequence[str] for each in takes if each.fact and each.fact.of}
    for key in settings:
        if key not in hints:
            raise SettingsError(f"{where}: setting {key!r} is not known.{known(key, hints)}")
    for each in takes:
        of = each.fact.of if each.fact else None
        if each.name in settings and of in settings:
            raise SettingsError(f"{where}: settings {of!r} and {each.name!r} are exclusive")
        filled = each.fact is not None and (of is None or of in settings)
        if each.required and not filled and each.name not in settings:
            raise SettingsError(f"{where}: setting {of or each.name!r} is missing")
    return {
        key: checked(value, hints[key], f"{where}: setting {key!r}")
        for key, value in settings.items()
    }


def build(
    part: Callable[..., Any],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    *,
    where: str,
) -> Any:
    """Call the part with its settings, and with the facts that fill the rest.

    Raises SettingsError for wrong settings, or if the model lacks a fact that is required.
    """
    given = check_settings(part, settings, where=where)
    for argument in arguments(part):
        fact = argument.fact
        if fact is None:
            continue
        # Popped: the part takes what the fact makes of this setting, not the setting.
        source = given.pop(fact.of, None) if fact.of else None
        other = fact.when is not None and given.get(fact.when[0]) != fact.when[1]
        if argument.name in given or other or (fact.of and source is None):
            continue
        value = (facts or {}).get(fact.name)
        if value is not None:
            given[argument.name] = value(source) if fact.of else value
        elif argument.required:
            raise SettingsError(f"{where} needs {fact.name}, which the model does not have")
    return part(**given)
