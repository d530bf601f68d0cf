"""Build an index that `polyvec search` reads.

An existing index is replaced as a whole; texts that it already holds are not embedded again.
An interrupted build resumes where it stopped.

example: printf 'a cat\\na dog\\n' | polyvec index /tmp/pets
"""

import argparse
import shlex
import sys

from polyvec.cli import common


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="write the index to this folder")
    common.input_options(parser)
    common.prompt_options(parser)
    parser.add_argument("--truncate-dim", type=common.positive, help="keep this many dimensions")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="write plain files, which need no polyvec[index]; searched exactly, built as a whole",
    )
    common.model_option(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.index.engines import engine_of
    from polyvec.index.plain import PlainIndex
    from polyvec.index.store import Index

    kind = PlainIndex if options.plain else Index
    if not options.plain:
        engine_of(options.folder)  # a package that is missing is known before the model loads
    records = list(common.read_input(options))
    index, report = kind.build(
        options.folder,
        records,
        common.load_truncated(options),
        model=common.model_name(options),
        scale=(options.scale or "full") if common.is_recipe(options) else "",
        attention=options.attention or "",
        options=common.loaded_with(options),
        batch_size=options.batch_size,
        truncate=options.truncate,
        **common.prompt_choice(options),
    )
    print(
        f"{options.folder}: {len(index)} texts, {report.num_embedded} newly embedded",
        file=sys.stderr,
    )
    folder = options.folder if not options.folder.startswith("-") else f"./{options.folder}"
    # The index knows how its model was loaded, but trust is the user's to give.
    trust = ["--trust-remote-code"] if options.trust_remote_code else []
    command = shlex.join(["polyvec", "search", folder, "your question", *trust])
    print(f"next: {command}", file=sys.stderr)
