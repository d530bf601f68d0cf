r"""Train an embedder by the stages of a recipe.

RECIPE is a name (see polyvec recipes list) or a file with [[stage]] sections. The folder of
--output then holds the resolved recipe, the curve and the checkpoints of each stage, and the
model, which Embedder.from_pretrained and sentence-transformers load. SECTION.KEY=VALUE changes a
setting of the recipe for this run. --resume goes on where a
killed run stopped, to the same weights. Several processes: torchrun --nproc-per-node N -m polyvec
train ...

example: printf '%s\n' '{"anchor": "a cat", "positive": "a kitten"}' \
  '{"anchor": "a car", "positive": "a vehicle"}' > /tmp/pairs.jsonl; printf '%s\n' '[system]' \
  'name = "mine"' 'paper = "-"' 'tasks = ["similarity"]' '[embedder]' 'pooling = "mean"' \
  'backbone = "polyvec/nano-lm"' '[[stage]]' 'kind = "scl"' 'batch_size = 2' \
  'data = [{ path = "/tmp/pairs.jsonl" }]' > /tmp/mine.toml; \
  polyvec train /tmp/mine.toml --output /tmp/my-run
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from polyvec.cli import common
from polyvec.cli.common import OVERRIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from polyvec.embed.embedder import Embedder
    from polyvec.train.trainer import Score


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="name of a recipe, or a file (.toml)")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="set this in place of the recipe's, such as stage.0.max_steps=10 (the first stage) "
        "or embedder.pooling=mean",
    )
    parser.add_argument("--scale", default="full", help="full (default), small or nano")
    parser.add_argument("--data", metavar="DATA", type=common.path, help="folder of the data sets")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=common.path,
        help="write the run here; default: runs/RECIPE",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    parser.add_argument(
        "--evaluate",
        nargs="+",
        default=(),
        metavar="FIGURE",
        help="measure these while training, each 'FOLDER SPLIT MEASURE' below --data, such as "
        "'stsb dev spearman'; the best checkpoint by the first is kept",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print parameters, memory, batches and the first inputs; load no weights",
    )


def run(options: argparse.Namespace) -> None:
    from polyvec.recipe import load_recipe
    from polyvec.train.run import dry_run, train_recipe

    # Words behind an option that takes several belong to it, for argparse.
    options.overrides += [each for each in options.evaluate if OVERRIDE.fullmatch(each)]
    options.evaluate = [each for each in options.evaluate if not OVERRIDE.fullmatch(each)]
    _check_figures(options)
    recipe = load_recipe(options.recipe, options.overrides)
    if options.dry_run:
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        for line in dry_run(recipe, options.scale, options.data, coloured=coloured):
            print(line)
        return
    output = options.output or Path("runs") / f"{recipe.key}-{options.scale}"
    train_recipe(
        recipe,
        options.scale,
        output,
        data=options.data,
        resume=options.resume,
        score=_score(options),
        overlap=_overlap(options),
        command=_command(options),
        say=lambda line: print(line, file=sys.stderr),
        shown=True,
    )
    print(output / "model")


def _check_figures(options: argparse.Namespace) -> None:
    """Raises an error for a figure that is none, or whose data are missing, before all else."""
    if options.evaluate:
        from polyvec.data.tasks.folder import read_folder
        from polyvec.evaluate.check import figure_parts

        for name in options.evaluate:
            folder, split, _ = figure_parts(name, "--evaluate")
            read_folder(Path(options.data or ".") / folder, split)


def _command(options: argparse.Namespace) -> str:
    """What makes this model again, for its card."""
    words = ["polyvec", "train", options.recipe, *options.overrides, "--scale", options.scale]
    words += ["--data", str(options.data)] if options.data else []
    words += ["--evaluate", *options.evaluate] if options.evaluate else []
    return shlex.join(words)


def _score(options: argparse.Namespace) -> "Score | None":
    """What measures the figures of --evaluate."""
    if not options.evaluate:
        return None
    from polyvec.evaluate.check import measure_figure

    def score(embedder: "Embedder") -> dict[str, float]:
        return {
            name: measure_figure(embedder, name, options.data, "--evaluate")
            for name in options.evaluate
        }

    return score


def _overlap(options: argparse.Namespace) -> "Callable[[Iterable[str]], Iterator[str]] | None":
    """What says how many texts of the figures' sets are among those of a stage."""
    if not options.evaluate:
        return None
    from polyvec.data.overlap.contamination import contaminated
    from polyvec.data.tasks.folder import read_folder
    from polyvec.evaluate.check import figure_parts

    def overlap(training_texts: "Iterable[str]") -> "Iterator[str]":
        parts = (figure_parts(name, "--evaluate") for name in options.evaluate)
        names = list(dict.fromkeys((name, split) for name, split, _ in parts))
        sets = [read_folder(Path(options.data or ".") / name, split) for name, split in names]
        for (name, split), found in zip(names, contaminated(sets, training_texts), strict=True):
            yield f"{name} {split}: {found}"

    return overlap
