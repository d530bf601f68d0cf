"""List the recipes of published systems, show one, check one, or measure a new figure.

`check` builds the recipe's embedder, tests its invariants, and measures each figure of its [expect]
section again, on the data sets below --data. `measure` prints figures that the recipe does not have
yet, as lines for that section.

example: polyvec recipes list
"""

import argparse
import math
import os

from polyvec.cli import common
from polyvec.errors import DataError


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
        "figure", nargs="+", help="'<data folder> <split> <measure>', as 'stsb test spearman'"
    )


def _how_to_measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name or file of a recipe")
    parser.add_argument("--scale", default="nano", help="nano (default), small or full")
    parser.add_argument(
        "--data",
        default=os.environ.get("POLYVEC_DATA"),
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
        names = settings.pooling
        pooling = names if isinstance(names, str) else "+".join(names)
        rows.append((recipe.key, system.name, pooling, settings.backbone, system.paper))
    common.show_table(("recipe", "system", "pooling", "backbone", "paper"), rows)


def _show(options: argparse.Namespace) -> None:
    from polyvec.recipe import load_recipe

    print(load_recipe(options.name).path.read_text("utf-8"), end="")


def _check(options: argparse.Namespace) -> None:
    from polyvec.evaluate.check import check_recipe
    from polyvec.evaluate.sections import EXPECT
    from polyvec.recipe import load_recipe

    recipe = load_recipe(options.name)
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
    from polyvec.evaluate.check import measure_figure
    from polyvec.recipe import load_recipe

    if not options.data:
        raise DataError("recipes measure: name the folder of data sets with --data")
    embedder = load_recipe(options.name).build(options.scale)
    print(f"[expect.{options.scale}]")
    for name in options.figure:
        score = measure_figure(embedder, name, options.data, "recipes measure:")
        # The bound leaves room for other CPUs' rounding, which moves ranks of near ties.
        bound = math.floor(100 * score - 0.5) / 100
        print(f'"{name}" = {{ at_least = {bound}, measured = {score:.4f} }}', flush=True)
