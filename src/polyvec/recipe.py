"""Recipes: a system of the literature as one short TOML file.

The loader knows no sections but [system] and [published]: each room of the package registers its
own in a file sections.py, and a user's package can register more. Sections are read strictly: an
unknown key or a wrong type is an error, with a suggestion, before any weight loads.
"""

import contextlib
import copy
import dataclasses
import functools
import graphlib
import importlib
import pkgutil
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import polyvec
from polyvec.errors import DataError, SettingsError, UnknownModelError, known
from polyvec.settings import fill, table

T = TypeVar("T")
# The paper's setting; SmolLM2-135M in its place; models inside the package, for tests in seconds.
SCALES = ("full", "small", "nano")
# What a user typed for each table of a recipe, by its name: "embedder", "stage 1".
Typed = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Section(Generic[T]):
    """A section of recipe files: [name], or [[name]] if it is repeated.

    `read` makes the value of a table; its second argument is the place to name in errors. With
    `scales`, the keys of a sub-table such as [name.nano] replace those of the section at that
    scale. T is the type of `recipe[section]`: a tuple of values if the section is repeated, and
    `default` if the recipe does not have it.

    `build` takes part in `Recipe.build`: it gets the value, the model that the sections named in
    `after` have built (None if there is none), the scale, and the options of the call, and
    returns the model.
    """

    name: str
    read: Callable[[dict[str, Any], str], Any]
    repeated: bool = False
    required: bool = False
    scales: bool = False
    default: Any = None
    build: Callable[..., Any] | None = None
    after: tuple[str, ...] = ()

    def value(
        self, raw: Mapping[str, Any], scale: str, path: Path, typed: Typed | None = None
    ) -> T:
        """The section of a parsed file at a scale; SettingsError names file, section and key."""
        typed = typed or {}
        if self.name not in raw:
            if self.required:
                raise SettingsError(f"{path}: section [{self.name}] is missing")
            return cast(T, self.default)
        found = raw[self.name]
        if not self.repeated:
            with naming(typed.get(self.name, ())):
                return cast(T, self._read(found, scale, f"{path}: [{self.name}"))
        if not isinstance(found, list):
            raise SettingsError(f"{path}: [{self.name}] must be written [[{self.name}]]")
        values = []
        for number, each in enumerate(found, 1):  # as a person counts the sections of a file
            name = f"{self.name} {number}"
            with naming(typed.get(name, ())):
                values.append(self._read(each, scale, f"{path}: [{name}"))
        return cast(T, tuple(values))

    def _read(self, found: Any, scale: str, where: str) -> Any:
        if not isinstance(found, dict):
            raise SettingsError(f"{where}] is {found!r}, expected a table")
        if not self.scales:
            return self.read(found, f"{where}]")
        base = {key: value for key, value in found.items() if key not in SCALES[1:]}
        if scale not in found or scale == SCALES[0]:
            return self.read(base, f"{where}]")
        if not isinstance(found[scale], dict):
            raise SettingsError(f"{where}.{scale}] is {found[scale]!r}, expected a table")
        return self.read({**base, **found[scale]}, f"{where}.{scale}]")


@contextlib.contextmanager
def naming(typed: Sequence[str]) -> Iterator[None]:
    """Errors of settings and data inside begin with what the user typed in the file's place."""
    try:
        yield
    except (SettingsError, DataError) as error:
        several = "overrides" if len(typed) > 1 else "override"
        began = f"{several} {', '.join(map(repr, typed))}: "
        if typed and not str(error).startswith(began):
            error.args = (f"{began}{error}", *error.args[1:])
        raise


@dataclass(frozen=True, slots=True)
class System:
    """What the recipe is: name, the survey's table and reference number, and what it is for.

    also: other tables of the survey with the same row. differs: what the recipe does otherwise than
    the paper, where it could not be kept.
    """

    name: str
    paper: str
    tasks: tuple[str, ...]
    table: int | None = None
    reference: int | None = None
    also: tuple[int, ...] = ()
    differs: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """A paper's own number and its place in the paper; never one of ours."""

    value: float
    source: str


_SECTIONS: dict[str, Section[Any]] = {}


def register(section: Section[T]) -> Section[T]:
    """Add a section that recipes may have; SettingsError if its name is taken."""
    if _SECTIONS.setdefault(section.name, section) is not section:
        raise SettingsError(f"section [{section.name}] is already registered")
    return section


SYSTEM: Section[System] = register(
    Section("system", functools.partial(fill, System), required=True)
)
PUBLISHED: Section[Mapping[str, Published]] = register(
    Section("published", functools.partial(table, Published), default={})
)


def all_sections() -> Mapping[str, Section[Any]]:
    """Every registered section by name; those of this package are found by sections.py."""
    _import_sections()
    return _SECTIONS


@functools.cache
def _import_sections() -> None:
    # A scan instead of a list, so that a new room needs no change here.
    for room in pkgutil.iter_modules(polyvec.__path__):
        # By file: asking the import system for the spec would import the room, and torch.
        files = (Path(root) / room.name / "sections.py" for root in polyvec.__path__)
        if room.ispkg and any(file.is_file() for file in files):
            importlib.import_module(f"polyvec.{room.name}.sections")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe: the values of its sections, as `recipe[EMBEDDER]` or `recipe.at(EMBEDDER, "nano")`.

    `present` are the names of the sections that the file has, `scales` those scales for which it
    has settings; without any, its settings are the same at every scale. `typed` are the overrides
    of each of its tables.
    """

    path: Path
    present: frozenset[str]
    scales: tuple[str, ...]
    values: Mapping[str, Mapping[str, Any]]  # by scale, then by name of section
    typed: Typed = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.path.stem

    @property
    def system(self) -> System:
        return self[SYSTEM]

    def __getitem__(self, section: Section[T]) -> T:
        """The value of a section at scale "full"."""
        return self.at(section, SCALES[0])

    def naming(self, table: str) -> contextlib.AbstractContextManager[None]:
        """Errors inside name the overrides of a table: "embedder", "stage 1"."""
        return naming(self.typed.get(table, ()))

    def at(self, section: Section[T], scale: str) -> T:
        """The value of a section at a scale: "full" (the paper's), "small" or "nano"."""
        if scale not in self.values:
            raise SettingsError(f"scale {scale!r} is not known.{known(scale, SCALES)}")
        return cast(T, self.values[scale][section.name])

    def build(self, scale: str = SCALES[0], **options: Any) -> Any:
        """The model that the sections build, an Embedder or HybridEmbedder; loads weights.

        Options are those of `from_pretrained` that say where files are found, such as `token`;
        `backbone` is a folder or hub id in place of the recipe's. If it is a folder of
        sentence-transformers, its projections (Dense, Normalize) replace the recipe's.
        """
        if scale not in self.scales and len(self.scales) > 1 and scale in SCALES:
            # Its settings at "full" name a model of billions of weights.
            raise SettingsError(
                f"{self.path}: has no scale {scale!r}; it has {', '.join(self.scales)}"
            )
        sections = all_sections()
        order = graphlib.TopologicalSorter({name: s.after for name, s in sections.items()})
        model = None
        for name in order.static_order():
            section = sections.get(name)  # None: an optional room that `after` names
            if section is not None and section.build is not None and name in self.present:
                try:
                    with self.naming(name):
                        model = section.build(self.at(section, scale), model, scale, **options)
                except UnknownModelError as error:
                    raise UnknownModelError(f"{error}{self._others(scale, options)}") from None
        if model is None:
            raise SettingsError(f"{self.path}: has no section that builds a model")
        return model

    def _others(self, scale: str, options: Mapping[str, Any]) -> str:
        """The tail of an error where the model of a scale cannot be had: the other scales."""
        others = [f"--scale {each}" for each in self.scales[self.scales.index(scale) + 1 :]]
        own = not others or options.get("backbone") is not None
        return "" if own else f"; {self.key} also runs at smaller scales: {', '.join(others)}"

    def resolved(self, scale: str = SCALES[0]) -> dict[str, Any]:
        """All settings at a scale, defaults included, as plain values that TOML and JSON have."""
        values = self.values[scale]
        return {name: plain(value) for name, value in values.items() if name in self.present}


def plain(value: Any) -> Any:
    """Settings as values that TOML and JSON have: tables, lists, strings, numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        # TOML has no null: a key that is left out takes its default, which is None.
        return {key: plain(each) for key, each in value.items() if each is not None}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def recipe_folder() -> Path:
    """The folder of the recipes: beside the source in a checkout, else inside the package."""
    here = Path(__file__).resolve()
    checkout = here.parents[2] / "recipes"
    return checkout if checkout.is_dir() else here.parent / "recipes"


def all_recipes(folder: Path | None = None) -> Iterator[Recipe]:
    """Every recipe, by path."""
    for path in sorted((folder or recipe_folder()).rglob("*.toml")):
        yield load_recipe(path)


def recipe_names() -> Mapping[str, Path]:
    """The recipes that have a name, and their files."""
    return {path.stem: path for path in recipe_folder().rglob("*.toml")}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, or of a name such as "all-minilm".

    overrides: "section.key=value" in place of what the file has, such as "embedder.pooling=mean"
    or "stage.0.max_steps=10"; of repeated sections the number from 0, or the kind ("stage.scl").
    Values are TOML's; what is not TOML is a string. They hold at every scale.

    Raises SettingsError, naming file or override, section and key, for anything not known.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        names = recipe_names()
        if str(name_or_path) not in names:
            raise SettingsError(
                f"recipe {str(name_or_path)!r} is not known.{known(str(name_or_path), names)}"
            )
        path = names[str(name_or_path)]
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"{path}: cannot be read ({reason})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:  # of 1,000 brackets
        raise SettingsError(f"{path}: not TOML ({error})") from None
    raw, typed = overridden(raw, overrides)
    return read_recipe(raw, path, typed)


def overridden(raw: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], Typed]:
    """A copy of a parsed file in which each "section.key=value" is set, at every scale.

    Also the overrides of each table. Raises SettingsError for one that does not fit the file.
    """
    found, typed = copy.deepcopy(dict(raw)), dict[str, list[str]]()
    for each in overrides:
        with naming([each]):
            typed.setdefault(_override(found, each), []).append(each)
    return found, typed


def _override(raw: dict[str, Any], override: str) -> str:
    """Set a value in a parsed file; returns the name of the table that it is in."""
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise SettingsError("expected section.key=value, such as stage.0.max_steps=10")
    section, *keys = keys
    if section not in all_sections():
        raise SettingsError(f"section [{section}] is not known.{known(section, all_sections())}")
    table = raw.setdefault(section, [] if all_sections()[section].repeated else {})
    place = section
    if isinstance(table, list):
        entries = table
        table, keys = _entry(entries, keys[0], f"[[{section}]]"), keys[1:]
        place = f"{section} {1 + next(i for i, each in enumerate(entries) if each is table)}"
        if not keys:
            raise SettingsError(f"which key of [[{section}]]? Expected {name}.key=value")
    value = _toml_value(text)
    _put(table, keys, value, section)
    for scale in SCALES[1:]:  # what a scale sets itself would hide the new value
        if isinstance(table.get(scale), dict) and keys[0] in table[scale]:
            _put(table[scale], keys, value, f"{section}.{scale}")
    return place


def _put(table: Any, keys: Sequence[str], value: Any, where: str) -> None:
    *inner, last = keys
    for key in inner:
        if isinstance(table, list):
            table = _entry(table, key, where)
        elif isinstance(table, dict):
            table = table.setdefault(key, {})
        where = f"{where}.{key}"
    if isinstance(table, list):
        table[table.index(_entry(table, last, where))] = value
    elif isinstance(table, dict):
        table[last] = value
    else:
        raise SettingsError(f"{where} is {table!r}, not a table")


def _entry(entries: list[Any], key: str, where: str) -> Any:
    """An entry by its number from 0, or the only one of this name or kind."""
    if key.isdecimal() and int(key) < len(entries):
        return entries[int(key)]
    tables = [each for each in entries if isinstance(each, dict)]
    fitting = [each for each in tables if key in (each.get("name"), each.get("kind"))]
    if len(fitting) != 1:
        few = f"{len(fitting)} entries are called" if fitting else "no entry"
        there = f"the first of {len(entries)} is 0" if entries else "there are none"
        raise SettingsError(f"{where}: {few} {key!r}; {there}")
    return fitting[0]


def _toml_value(text: str) -> Any:
    """A value as TOML has it; other text, such as a path, is a string."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text


def read_recipe(raw: Mapping[str, Any], path: Path, typed: Typed | None = None) -> Recipe:
    """The recipe of a parsed file; `typed` are the overrides that are in it already."""
    sections = all_sections()
    for name in raw:
        if name not in sections:
            raise SettingsError(
                f"{path}: section [{name}] is not known.{known(name, sections)} A section of "
                "another package is known once that package is imported."
            )
    # All scales are read now: a mistake in [embedder.nano] must not wait for a run at nano.
    values = {
        scale: {name: each.value(raw, scale, path, typed) for name, each in sections.items()}
        for scale in SCALES
    }
    scaled = [raw[name] for name, section in sections.items() if section.scales and name in raw]
    tables = [each for found in scaled for each in (found if isinstance(found, list) else [found])]
    own = (SCALES[0], *(scale for scale in SCALES[1:] if any(scale in each for each in tables)))
    return Recipe(path, frozenset(raw), own, values, typed or {})
