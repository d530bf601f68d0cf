"""Options that several verbs share."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polyvec.errors import InputError

if TYPE_CHECKING:
    from polyvec.data.texts import Record
    from polyvec.embed.embedder import Embedder


def model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="folder, hub id, or recipe file (.toml); default: all-MiniLM-L6-v2",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: the best there is")


def input_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", help="texts; default, or -: standard input")
    parser.add_argument("--column", help="where the text stands in .jsonl, .csv, .parquet")
    parser.add_argument("--id-column", help="where the id stands; default: _id, id or docid")
    parser.add_argument("--batch-size", type=positive, help="most texts in a batch (memory)")


def read_input(options: argparse.Namespace) -> "Iterator[Record]":
    """Records of FILE, or of the lines of standard input."""
    from polyvec.data.texts import read_texts

    if options.file not in (None, "-"):
        return read_texts(options.file, column=options.column, id_column=options.id_column)
    if sys.stdin is None:
        raise InputError("no FILE, and standard input is closed")
    if sys.stdin.isatty():
        raise InputError(
            f"no FILE, and standard input is a terminal; see polyvec {options.verb} --help"
        )
    return read_texts(sys.stdin.buffer, column=options.column, id_column=options.id_column)


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere tab-separated lines, for scripts and uncut."""
    if not sys.stdout.isatty():
        for row in (header, *rows):
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def load_model(options: argparse.Namespace) -> "Embedder":
    """The embedder of --model: a folder, a hub id, a recipe file, or the default."""
    from polyvec.embed.embedder import Embedder
    from polyvec.embed.sources import DEFAULT_MODEL
    from polyvec.recipe import load_recipe

    name = options.model or DEFAULT_MODEL
    device = _device(options.device)
    if name.endswith(".toml"):
        embedder = load_recipe(name).build()
        return embedder.to(device) if device else embedder
    return Embedder.from_pretrained(name, device=device)


def model_name(options: argparse.Namespace) -> str:
    """What to call the model in stored files; folders by absolute path."""
    from polyvec.embed.sources import DEFAULT_MODEL

    name = options.model or DEFAULT_MODEL
    return str(Path(name).resolve()) if Path(name).exists() else name


def _device(name: str | None) -> str | None:
    if name is None:
        return None
    import torch

    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device {name!r} cannot be used: {reason}") from None
    return name
