"""Recipes: a system of the literature as one short TOML file.

The loader knows no sections but [system] and [published]: each room of the package registers its
own in a file sections.py, and a user's package can register more. Sections are read strictly: an
unknown key or a wrong type is an error, with a suggestion, before any weight loads.
"""

import dataclasses
import functools
import graphlib
import importlib
import pkgutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import polyvec
from polyvec.errors import SettingsError, UnknownModelError, known
from polyvec.settings import fill, table

T = TypeVar("T")
# The paper's setting; SmolLM2-135M in its place; models inside the package, for tests in seconds.
SCALES = ("full", "small", "nano")


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

    def value(self, raw: Mapping[str, Any], scale: str, path: Path) -> T:
        """The section of a parsed file at a scale; SettingsError names file, section and key."""
        if self.name not in raw:
            if self.required:
                raise SettingsError(f"{path}: section [{self.name}] is missing")
            return cast(T, self.default)
        found = raw[self.name]
        if not self.repeated:
            return cast(T, self._read(found, scale, f"{path}: [{self.name}"))
        if not isinstance(found, list):
            raise SettingsError(f"{path}: [{self.name}] must be written [[{self.name}]]")
        # Errors count from 1, as a person counts the sections of a file.
        each = (self._read(t, scale, f"{path}: [{self.name} {i}") for i, t in enumerate(found, 1))
        return cast(T, tuple(each))

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


@dataclass(frozen=True, slots=True)
class System:
    """What the recipe is: name, the survey's table and reference number, and what it is for."""

    name: str
    paper: str
    tasks: tuple[str, ...]
    table: int | None = None
    reference: int | None = None


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
    has settings; without any, its settings are the same at every scale.
    """

    path: Path
    present: frozenset[str]
    scales: tuple[str, ...]
    values: Mapping[str, Mapping[str, Any]]  # by scale, then by name of section

    @property
    def key(self) -> str:
        return self.path.stem

    @property
    def system(self) -> System:
        return self[SYSTEM]

    def __getitem__(self, section: Section[T]) -> T:
        """The value of a section at scale "full"."""
        return self.at(section, SCALES[0])

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


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe of a file, or of a name such as "all-minilm".

    Raises SettingsError, naming file, section and key, for anything not known.
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
        raise SettingsError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not TOML ({error})") from None
    return read_recipe(raw, path)


def read_recipe(raw: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe of a parsed file."""
    sections = all_sections()
    for name in raw:
        if name not in sections:
            raise SettingsError(
                f"{path}: section [{name}] is not known.{known(name, sections)} A section of "
                "another package is known once that package is imported."
            )
    # All scales are read now: a mistake in [embedder.nano] must not wait for a run at nano.
    values = {
        scale: {name: section.value(raw, scale, path) for name, section in sections.items()}
        for scale in SCALES
    }
    scaled = [raw[name] for name, section in sections.items() if section.scales and name in raw]
    tables = [each for found in scaled for each in (found if isinstance(found, list) else [found])]
    own = (SCALES[0], *(scale for scale in SCALES[1:] if any(scale in each for each in tables)))
    return Recipe(path, frozenset(raw), own, values)
