"""Recipes: a system of the literature as one short TOML file.

The only code that knows settings files. Sections are frozen dataclasses, filled
strictly: an unknown key or a wrong type fails, with a suggestion, before any weight loads.
"""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import SettingsError, known
from polyvec.settings import fill, known_keys, table, typed

SCALES = ("full", "nano")


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
    """A paper's own number and where it stands; never one of ours."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """A figure measured here: `polyvec recipes check` measures it again and compares."""

    at_least: float
    measured: float


@dataclass(frozen=True, slots=True)
class Hybrid:
    """The recipes whose embedders rank beside this one's, and the weight of each, its own first."""

    members: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe. `nano` holds the keys of [embedder] that differ at `--scale nano`.

    Keys of `expect` are "<data folder> <split> <measure>", such as "stsb test spearman".
    With `hybrid` its embedder is one of several whose scores are fused.
    """

    path: Path
    system: System
    embedder: EmbedderSettings
    nano: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Published] = field(default_factory=dict)
    expect: Mapping[str, Mapping[str, Expectation]] = field(default_factory=dict)
    hybrid: Hybrid | None = None

    @property
    def key(self) -> str:
        return self.path.stem

    def at_scale(self, scale: str) -> EmbedderSettings:
        """The embedder's settings at scale "full" (the paper's) or "nano" (runs anywhere)."""
        if scale not in SCALES:
            raise SettingsError(f"scale {scale!r} is not known.{known(scale, SCALES)}")
        return dataclasses.replace(self.embedder, **self.nano) if scale == "nano" else self.embedder

    def build(self, scale: str = "full", **where: Any):
        """The Embedder at a scale, a HybridEmbedder where it has members; loads weights."""
        from polyvec.embed.compose import compose

        embedder = compose(self.at_scale(scale), **where)
        if self.hybrid is None:
            return embedder
        from polyvec.index.hybrid import HybridEmbedder

        members = [load_recipe(name).build(scale, **where) for name in self.hybrid.members]
        return HybridEmbedder([embedder, *members], self.hybrid.weights)


def recipe_folder() -> Path:
    """Where the recipes lie: beside the source in a checkout, else inside the package."""
    here = Path(__file__).resolve()
    checkout = here.parents[2] / "recipes"
    return checkout if checkout.is_dir() else here.parent / "recipes"


def all_recipes(folder: Path | None = None) -> Iterator[Recipe]:
    """Every recipe, by path."""
    for path in sorted((folder or recipe_folder()).rglob("*.toml")):
        yield load_recipe(path)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe of a file, or of a name such as "all-minilm".

    Raises SettingsError, naming file, section and key, for anything not known.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        names = {p.stem: p for p in recipe_folder().rglob("*.toml")}
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
    return _recipe(path, raw)


def _recipe(path: Path, raw: dict[str, Any]) -> Recipe:
    sections = ("system", "embedder", "hybrid", "published", "expect")
    known_keys(raw, sections, f"{path}:")
    for name in ("system", "embedder"):
        if name not in raw:
            raise SettingsError(f"{path}: section [{name}] is missing")
    embedder = dict(raw["embedder"])
    nano = typed(
        EmbedderSettings, embedder.pop("nano", {}), f"{path}: [embedder.nano]", partial=True
    )
    expect = raw.get("expect", {})
    known_keys(expect, SCALES, f"{path}: [expect]")
    for scale, figures in expect.items():
        for key in figures:
            if len(key.split()) != 3:
                raise SettingsError(
                    f"{path}: [expect.{scale}] {key!r} is not '<data folder> <split> <measure>'"
                )
    return Recipe(
        path,
        fill(System, raw["system"], f"{path}: [system]"),
        fill(EmbedderSettings, embedder, f"{path}: [embedder]"),
        nano,
        table(Published, raw.get("published", {}), f"{path}: [published]"),
        {scale: table(Expectation, t, f"{path}: [expect.{scale}]") for scale, t in expect.items()},
        _hybrid(raw.get("hybrid"), f"{path}: [hybrid]"),
    )


def _hybrid(raw: Mapping[str, Any] | None, where: str) -> Hybrid | None:
    if raw is None:
        return None
    found: Hybrid = fill(Hybrid, raw, where)
    if len(found.weights) != len(found.members) + 1:
        raise SettingsError(
            f"{where} has {len(found.weights)} weights for {len(found.members) + 1} embedders"
        )
    return found
