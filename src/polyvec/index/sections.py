"""The section [hybrid] of recipes."""

from dataclasses import dataclass
from typing import Any

from polyvec.errors import SettingsError
from polyvec.recipe import Section, load_recipe, register
from polyvec.settings import fill


@dataclass(frozen=True, slots=True)
class Hybrid:
    """Recipes whose embedders rank beside this one's; the first weight is this one's own.

    `depth`: scores are scaled over the best documents of each, so many; unset: over all.
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]
    depth: int | None = None


def _read(raw: dict[str, Any], where: str) -> Hybrid:
    found: Hybrid = fill(Hybrid, raw, where)
    if len(found.weights) != len(found.members) + 1:
        raise SettingsError(
            f"{where} has {len(found.weights)} weights for {len(found.members) + 1} embedders"
        )
    return found


def _build(hybrid: Hybrid, model: Any, scale: str, **options: Any) -> Any:
    from polyvec.index.hybrid import HybridEmbedder  # imports torch

    recipes = [load_recipe(name) for name in hybrid.members]
    for recipe in recipes:
        if recipe[HYBRID] is not None:  # or a recipe that names itself would never end
            raise SettingsError(f"[hybrid] member {recipe.key!r} is a hybrid itself")
    members = [recipe.build(scale, **options) for recipe in recipes]
    return HybridEmbedder([model, *members], hybrid.weights, depth=hybrid.depth)


HYBRID: Section[Hybrid | None] = register(
    Section("hybrid", _read, build=_build, after=("embedder",))
)
