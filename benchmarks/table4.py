"""Every trained recipe of the survey's Table 4 at scale nano: before and after its stages.

    python benchmarks/table4.py --data DATA              (one to five minutes a recipe)
    python benchmarks/table4.py --data DATA --write      what is finished, into the recipes

Measured are STS-B test and MED, a retrieval set that no recipe trains on. A recipe is a cell in
--folder, so an interrupted run goes on and several processes share the work. --write puts the
figures into the section [expect.nano] of each recipe, from where docs/generate.py makes the table.
"""

import argparse
import re
import sys
import time
import traceback
from pathlib import Path

from training_free import Work

from polyvec.evaluate.check import expectation, measure_figure, trained
from polyvec.recipe import Recipe, all_recipes
from polyvec.storage.files import atomic_file, cache_folder
from polyvec.train.sections import STAGES

FIGURES = ("stsb test spearman", "med test ndcg@10")
SECTION = re.compile(r"^\[expect\.nano\]\n(?:.+\n)*\n?", re.MULTILINE)


def trained_recipes() -> list[Recipe]:
    return [each for each in all_recipes() if each.system.table == 4 and each[STAGES]]


def measure(recipe: Recipe, data: Path, work: Work) -> None:
    if work.path(recipe.key).exists() or not work.claim(recipe.key):
        return
    began = time.perf_counter()
    try:
        embedder = recipe.build("nano")
        before = [measure_figure(embedder, name, data, recipe.key) for name in FIGURES]
        began = time.perf_counter()
        embedder = trained(recipe, "nano", data)
        seconds = time.perf_counter() - began
        after = [measure_figure(embedder, name, data, recipe.key) for name in FIGURES]
        found = {name: (a, b) for name, a, b in zip(FIGURES, before, after, strict=True)}
        work.keep({"figures": found, "trained_s": round(seconds, 1)}, recipe.key)
        shown = "  ".join(
            f"{name} {100 * a:.2f} -> {100 * b:.2f}" for name, (a, b) in found.items()
        )
        print(f"{recipe.key} ({seconds:.0f} s): {shown}", flush=True)
    except Exception:  # noqa: BLE001 - one recipe must not end the others
        print(f"{recipe.key}: failed\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    finally:
        work.release(recipe.key)


def write(recipe: Recipe, work: Work) -> None:
    """Put a recipe's figures into its file."""
    cell = work.read(recipe.key)
    if cell is None:
        print(f"{recipe.key}: not measured", file=sys.stderr)
        return
    lines = [expectation(name, b, a) for name, (a, b) in cell["figures"].items()]
    text = SECTION.sub("", recipe.path.read_text("utf-8")).rstrip("\n")
    with atomic_file(recipe.path, "w") as file:
        file.write("\n".join([text, "", "[expect.nano]", *lines, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="default: polyvec's cache folder")
    parser.add_argument("--only", nargs="*", help="these recipes")
    parser.add_argument("--write", action="store_true", help="write what is finished, and end")
    options = parser.parse_args()
    work = Work(options.folder or cache_folder("table4"))
    for recipe in trained_recipes():
        if options.only and recipe.key not in options.only:
            continue
        if options.write:
            write(recipe, work)
        else:
            measure(recipe, options.data, work)


if __name__ == "__main__":
    main()
