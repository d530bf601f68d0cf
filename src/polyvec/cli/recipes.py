"""The systems of the literature as recipes: list them, show one, check one.

`check` builds the recipe's embedder, tests its invariants, and measures again each figure in its
[expect] section on the data sets below --data.

example: polyvec recipes list
"""

import argparse
import os

from polyvec.cli import common
from polyvec.errors import DataError


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="all recipes, a line each")
    show = actions.add_parser("show", help="one recipe's file")
    show.add_argument("name", help="a recipe's name or file")
    check = actions.add_parser("check", help="build a recipe and measure its figures again")
    check.add_argument("name", help="a recipe's name or file")
    check.add_argument("--scale", default="nano", help="nano (default) or full")
    check.add_argument(
        "--data",
        default=os.environ.get("POLYVEC_DATA"),
        help="folder of data sets; or POLYVEC_DATA",
    )


def run(options: argparse.Namespace) -> None:
    {"list": _list, "show": _show, "check": _check}[options.action](options)


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
            f"{recipe.key} has figures to measure: name the folder of data sets with --data"
        )
    failed = 0
    for line in check_recipe(recipe, options.scale, options.data):
        failed += not line.ok
        print(f"{'ok  ' if line.ok else 'FAIL'} {line.what}: {line.found}", flush=True)
    if failed:
        raise DataError(f"{recipe.key}: {failed} checks failed")
