"""`polyvec data import`: a public data set becomes a folder that the other verbs read."""

import argparse
import sys

from polyvec.cli import common
from polyvec.errors import InputError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help="read this file, folder or archive (.zip, .tar.gz), as it was published",
    )
    parser.add_argument("target", metavar="FOLDER", help="write a new folder, such as DATA/stsb")
    parser.add_argument(
        "--split", help="import this split alone; of a file whose name has none: its split (test)"
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="FIELD=COLUMN",
        help="name the column of a field, or its number if the file has no header",
    )
    parser.add_argument("--only", metavar="TEXT", help="read files whose path contains TEXT")


def run(options: argparse.Namespace) -> None:
    from polyvec.data.importing.folder import import_data

    columns = {}
    for each in options.columns:
        field, equals, column = each.partition("=")
        if not (field and equals and column):
            raise InputError(f"--columns: {each!r} is not FIELD=COLUMN, such as sentence1=premise")
        columns[field] = column
    found = import_data(
        options.source, options.target, split=options.split, columns=columns, only=options.only
    )
    rows = [(name, f"{number}") for name, number in found.files.items()]
    common.show_table(("file", "rows"), rows)
    if found.unread:
        print(f"not read: {', '.join(found.unread)}", file=sys.stderr)
    if not found.kind:
        return
    split = "" if found.task or "test" in found.splits else f" --split {found.splits[-1]}"
    parent = str(options.target).rstrip("/").rpartition("/")[0] or "."
    task = f"{found.task} --data {parent}" if found.task else options.target
    print(f"{found.kind}; score a model: polyvec evaluate MODEL {task}{split}", file=sys.stderr)
