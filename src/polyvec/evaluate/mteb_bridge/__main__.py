r"""mteb's own command line with polyvec's models, and with folders of data as tasks.

python -m polyvec.evaluate.mteb_bridge run -m MODEL -t STS12 data/my-pairs --output-folder results

MODEL is a folder or a hub id that Embedder.from_pretrained reads. All verbs and options are
mteb's (`run --help`). `mteb run` itself finds only models in its registry, which no plugin can
extend, and loads a folder with sentence-transformers.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polyvec.errors import PolyvecError
from polyvec.evaluate.mteb_bridge import needs_mteb

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder
    from polyvec.interfaces import TextEncoder


def main(
    arguments: list[str] | None = None, *, load: "Callable[[str], TextEncoder] | None" = None
) -> int:
    """Run mteb's command line; returns the exit status, 2 for a user's mistake, after one line.

    `load` loads MODEL; the default is `Embedder.from_pretrained`.
    """
    try:
        needs_mteb()
        from mteb.cli.build_cli import build_cli

        from polyvec.evaluate.mteb_bridge.api import reachable

        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        parser = build_cli()
        options = parser.parse_args(arguments)
        if not hasattr(options, "func"):
            parser.print_help()
            return 2
        with reachable():
            _run(options, load)
    except PolyvecError as error:
        print("polyvec: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace, load: "Callable[[str], TextEncoder] | None") -> None:
    """Scores folders, which mteb cannot read, then runs mteb's function for the other tasks."""
    from polyvec.evaluate.mteb_bridge.api import folders_and_names, mteb_tasks, register

    if getattr(options, "model", None) is None:  # verbs without a model, such as listing tasks
        options.func(options)
        return
    embedder = load(options.model) if load else _loaded(options)
    options.model, options.model_revision = register(embedder, options.model), None
    given = getattr(options, "tasks", None)
    folders, names = folders_and_names(given)
    if given:
        mteb_tasks(names, languages=options.languages)  # an unknown name fails before anything runs
    for folder in folders:
        _local(options, folder)
    if not folders or names:
        if given:
            options.tasks = names
        options.func(options)


def _loaded(options: argparse.Namespace) -> "Embedder":
    from polyvec.embed.embedder import Embedder

    chosen: dict[str, Any] = {}
    if options.model_revision is not None:
        chosen["revision"] = options.model_revision
    if options.device is not None:
        number = isinstance(options.device, int)
        chosen["device"] = f"cuda:{options.device}" if number else options.device
    return Embedder.from_pretrained(options.model, **chosen)


def _local(options: argparse.Namespace, folder: str) -> None:
    """Scores a folder's splits as `mteb run` does its tasks; one line per split on stdout."""
    import mteb

    from polyvec.evaluate.mteb_bridge.api import mteb_tasks

    size: Any = {} if options.batch_size is None else {"batch_size": options.batch_size}
    for split in options.eval_splits or ["test"]:
        (task,) = mteb_tasks(folder, split=split)
        result = mteb.evaluate(
            mteb.get_model(options.model),
            task,
            cache=mteb.ResultCache(options.output_folder),
            overwrite_strategy="always" if options.overwrite else options.overwrite_strategy,
            encode_kwargs=size,
            prediction_folder=options.prediction_folder,
            num_proc=options.num_proc,
            co2_tracker=options.co2_tracker,
        )
        score = result.task_results[0].get_score()
        print(f"{task.metadata.name}\t{split}\t{task.metadata.main_score}\t{score * 100:.2f}")


if __name__ == "__main__":
    sys.exit(main())
