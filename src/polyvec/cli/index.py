"""Build an index: a folder of plain files that `polyvec search` reads.

An existing index is replaced as a whole; texts that it already holds are not embedded again.
An interrupted build resumes where it stopped.

example: printf 'a cat\\na dog\\n' | polyvec index /tmp/pets
"""

import argparse
import sys

from polyvec.cli import common


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="write the index to this folder")
    common.input_options(parser)
    common.model_option(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.index.store import Index

    records = list(common.read_input(options))
    index, report = Index.build(
        options.folder,
        records,
        common.load_model(options),
        model=common.model_name(options),
        scale=(options.scale or "full") if common.is_recipe(options) else "",
        attention=options.attention or "",
        batch_size=options.batch_size,
    )
    print(
        f"{options.folder}: {len(index)} texts, {report.num_embedded} newly embedded",
        file=sys.stderr,
    )
    print(f"next: polyvec search {options.folder} 'your question'", file=sys.stderr)
