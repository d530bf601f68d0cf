"""List the recipes of published systems, show one, check one, or measure a new figure.

`check` builds the recipe's embedder, tests its invariants, and measures each figure of its [expect]
section again, on the data sets below --data; where those figures are of the trained embedder, it is
trained first. `measure` prints figures that the recipe does not have yet, as lines for that
section.

example: polyvec recipes list
"""

import argparse
import os
from typing import TYPE_CHECKING

from polyvec.cli import common
from polyvec.errors import DataError

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder
    from polyvec.index.hybrid import HybridEmbedder


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="print all recipes, one per line")
    show = actions.add_parser("show", help="print a recipe's file")
    show.add_argument("name", help="name or file of a recipe")
    check = actions.add_parser("check", help="build a recipe and measure its figures again")
    _how_to_measure(check)
    measure = actions.add_parser("measure", help="measure new figures of a recipe")
    _how_to_measure(measure)
    measure.add_argument(
        "--train", action="store_true", help="measure before and after the recipe's stages"
    )
    measure.add_argument(
        "figure", nargs="+", help="'<data folder> <split> <measure>', as 'stsb test spearman'"
    )


def _how_to_measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name or file of a recipe")
    parser.add_argument("--scale", default="nano", help="nano (default), small or full")
    parser.add_argument(
        "--data",
        default=os.environ.get("POLYVEC_DATA") or None,
        help="folder of data sets; default: the variable POLYVEC_DATA",
    )


def run(options: argparse.Namespace) -> None:
    actions = {"list": _list, "show": _show, "check": _check, "measure": _measure}
    actions[options.action](options)


def _list(options: argparse.Namespace) -> None:
    from polyvec.embed.sections import EMBEDDER
    from polyvec.recipe import all_recipes

    rows = []
    for recipe in all_recipes():
        settings, system = recipe[EMBEDDER], recipe.system
        pooling, backbone = "", ""
        if settings is not None:
            names, backbone = settings.pooling, settings.backbone
            pooling = names if isinstance(names, str) else "+".join(names)
        rows.append((recipe.key, system.name, pooling, backbone, system.paper))
    common.show_table(("recipe", "system", "pooling", "backbone", "paper"), rows)


def _show(options: argparse.Namespace) -> None:
    from polyvec.recipe import load_recipe

    print(load_recipe(options.name).path.read_text("utf-8"), end="")


def _check(options: argparse.Namespace) -> None:
    from polyvec.evaluate.sections import EXPECT
    from polyvec.recipe import load_recipe

    recipe = load_recipe(options.name)
    if "inverter" in recipe.present:
        from polyvec.invert.checking import check_inverter as check_recipe
    else:
        from polyvec.evaluate.check import check_recipe
    if recipe[EXPECT].get(options.scale) and not options.data:
        raise DataError(
            f"{recipe.key} has figures to measure: pass the folder of data sets with --data"
        )
    failed = 0
    for line in check_recipe(recipe, options.scale, options.data):
        failed += not line.ok
        print(f"{'ok  ' if line.ok else 'FAIL'} {line.what}: {line.found}", flush=True)
    if failed:
        raise DataError(f"{recipe.key}: {failed} checks failed")


def _measure(options: argparse.Namespace) -> None:
    from polyvec.evaluate.check import expectation, trained
    from polyvec.recipe import load_recipe

    if not options.data:
        raise DataError("recipes measure: name the folder of data sets with --data")
    recipe = load_recipe(options.name)
    if "inverter" in recipe.present:
        from polyvec.invert.checking import measure_inverter as measure
    else:
        from polyvec.evaluate.check import measure_figure as measure

    def scores(embedder: "Embedder | HybridEmbedder") -> list[float]:
        return [
            measure(embedder, name, options.data, "recipes measure:") for name in options.figure
        ]

    before = scores(recipe.build(options.scale))
    after = scores(trained(recipe, options.scale, options.data)) if options.train else before
    print(f"[expect.{options.scale}]")
    for name, untrained, score in zip(options.figure, before, after, strict=True):
        print(expectation(name, score, untrained if options.train else None), flush=True)
