"""Embed texts from a file or standard input.

With --output, a run that is interrupted keeps its vectors beside the output, in a hidden folder,
and the same command goes on from there. Into a folder (FOLDER/) go shards in Parquet and a
manifest; the same command in several processes, also of several machines, shares the work.

Input: one text per line on standard input, or FILE.txt, .jsonl, .json, .csv, .tsv, .parquet (or .gz
of those), or a folder of them. Output: .npy, .jsonl, .parquet or .safetensors; JSON lines on
standard output without --output, or with --output -.

example: echo 'a cat' | polyvec embed --truncate-dim 4
"""

import argparse
import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.cli import common
from polyvec.errors import InputError

if TYPE_CHECKING:
    from polyvec.data.texts import Record
    from polyvec.embed.embedder import Embedder
    from polyvec.storage.vector_files import Write


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write vectors to this file, or shards of them to FOLDER/",
    )
    common.input_options(parser)
    common.model_option(parser)
    common.prompt_options(parser)
    parser.add_argument("--truncate-dim", type=common.positive, help="keep this many dimensions")
    parser.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    parser.add_argument(
        "--precision",
        default="float32",
        help="write float32 (default), int8, uint8, binary or ubinary",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="find the ranges of int8 and uint8 from the texts of this file",
    )
    parser.add_argument(
        "--shard-rows", type=common.positive, metavar="N", help="rows a shard; default: 50000"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="work on this Ray cluster; local: on this machine"
    )


def run(options: argparse.Namespace) -> None:
    from polyvec.cli import embed_folder
    from polyvec.storage.vector_files import check_kind

    if options.output == "-":
        options.output = None
    sharded = embed_folder.is_folder(options.output)
    for name in ("ray", "shard_rows"):
        if getattr(options, name) is not None and not sharded:
            raise InputError(f"--{name.replace('_', '-')}: only with an output folder, -o FOLDER/")
    if options.calibrate is not None and options.precision not in ("int8", "uint8"):
        raise InputError("--calibrate: only --precision int8 and uint8 have ranges")
    if sharded:
        embed_folder.check(options)
        embedder = common.load_model(options)
        if options.calibrate is not None:
            _calibrate(options, embedder)
        embed_folder.run(options, embedder, _asked(options))
        return
    if options.output is not None:
        check_kind(options.output)
        _check_not_input(options)
    num_texts = common.count_input(options)
    _write(options, _peek(common.read_input(options)), num_texts)


def _check_not_input(options: argparse.Namespace) -> None:
    from polyvec.data.texts import READERS, kind_of

    output = Path(options.output)
    if options.file in (None, "-"):
        return
    if output.exists() and output.samefile(options.file):
        raise InputError(f"{output}: input and output are the same file; not overwritten")
    inside = output.absolute().is_relative_to(Path(options.file).absolute())
    if Path(options.file).is_dir() and inside and kind_of(output) in ("txt", *READERS):
        raise InputError(
            f"{output}: in the folder that is read, where it would be read as a text next time; "
            "write it elsewhere"
        )


def _write(options: argparse.Namespace, records: "Iterator[Record]", num_texts: int | None) -> None:
    """Embed in windows; only one window of texts is in memory."""
    from polyvec.cli.embed_resumed import Resumed
    from polyvec.interfaces import RunOptions
    from polyvec.storage.vector_files import vector_file

    embedder = common.load_model(options)
    if options.calibrate is not None:
        _calibrate(options, embedder)
    asked = _asked(options)
    how = RunOptions(options.batch_size, truncate=options.truncate, num_texts=num_texts)
    output = None if options.output is None else Path(options.output)
    resumed = Resumed(embedder, output, asked, how)
    if resumed.num_known:
        print(f"{output}: {resumed.num_known} vectors of an interrupted run", file=sys.stderr)
    with vector_file(output) if output is not None else _stdout() as write:
        # Without any texts, the file still has the width and type of the vectors.
        write([], resumed.empty)
        resumed.write(records, write)
    resumed.clear()
    if output is not None:
        shape = f"{resumed.num_written} x {resumed.empty.shape[1]}"
        print(f"{output}: {shape}, {options.precision}", file=sys.stderr)


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `encode` that decide a vector."""
    return {
        "precision": options.precision,
        "truncate_dim": options.truncate_dim,
        "normalize_embeddings": options.normalize,
        **common.prompt_choice(options),
    }


def _calibrate(options: argparse.Namespace, embedder: "Embedder") -> None:
    """The ranges of integer vectors, from a sample that is read as the texts will be."""
    from polyvec.data.texts import read_texts

    texts = [record.text for record in read_texts(options.calibrate)]
    if not texts:
        raise InputError(f"--calibrate {options.calibrate}: contains no texts")
    embedder.calibrate(
        texts,
        batch_size=options.batch_size,
        truncate=options.truncate,
        truncate_dim=options.truncate_dim,
        normalize_embeddings=options.normalize,
        **common.prompt_choice(options),
    )


def _peek(records: "Iterator[Record]") -> "Iterator[Record]":
    """Read the first record before weights load, so that a wrong file fails at once."""
    first = next(records, None)
    return itertools.chain([] if first is None else [first], records)


@contextlib.contextmanager
def _stdout() -> "Iterator[Write]":
    """Write vectors as JSON lines to standard output; flush even after an error."""
    from polyvec.storage.vector_files import jsonl_lines

    try:
        yield lambda ids, vectors: sys.stdout.writelines(jsonl_lines(ids, vectors))
    finally:
        sys.stdout.flush()
