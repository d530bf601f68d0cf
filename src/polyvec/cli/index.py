"""Texts become an index: a folder of plain files that `polyvec search` reads.

An existing index is replaced as a whole; texts that it already holds are not embedded again,
and a build that was interrupted goes on where it stopped.

example: printf 'a cat\\na dog\\n' | polyvec index /tmp/pets
"""

import argparse
import sys

from polyvec.cli import common


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="the index")
    parser.add_argument("file", nargs="?", help="texts; default: standard input, a text a line")
    common.model_option(parser)
    common.input_options(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.data.texts import as_stream, read_texts
    from polyvec.errors import InputError
    from polyvec.index.store import Index

    if options.file is None and sys.stdin.isatty():
        raise InputError("no FILE, and standard input is a terminal; see polyvec index --help")
    source = options.file or as_stream(sys.stdin.buffer)
    records = list(read_texts(source, column=options.column, id_column=options.id_column))
    index, report = Index.build(
        options.folder,
        records,
        common.load_model(options),
        model=common.model_name(options),
        batch_size=options.batch_size,
    )
    print(
        f"{options.folder}: {len(index)} texts, {report.num_embedded} of them embedded now",
        file=sys.stderr,
    )
    print(f"ask it: polyvec search {options.folder} 'your question'", file=sys.stderr)
