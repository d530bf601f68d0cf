"""Texts become vectors: from a file or standard input, to a file or standard output.

Input: a text a line on standard input, or FILE.txt, .jsonl, .csv, .parquet (or .gz of those).
Output: .npy, .jsonl, .parquet or .safetensors; JSON lines on standard output without --output.

example: echo 'a cat' | polyvec embed --truncate-dim 4
"""

import argparse
import sys

from polyvec.cli import common


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", help="texts; default: standard input")
    parser.add_argument("-o", "--output", metavar="FILE", help="where the vectors go")
    common.model_option(parser)
    common.input_options(parser)
    parser.add_argument("--prompt", help="put before every text")
    parser.add_argument("--prompt-name", help="one of the model's stored prompts")
    parser.add_argument("--truncate-dim", type=common.positive, help="keep this many dimensions")
    parser.add_argument("--normalize", action="store_true", help="vectors of length 1")
    parser.add_argument(
        "--precision", default="float32", help="float32, int8, uint8, binary, ubinary"
    )


def run(options: argparse.Namespace) -> None:
    from polyvec.data.texts import as_stream, read_texts
    from polyvec.data.vectors import check_kind
    from polyvec.errors import InputError

    if options.output:
        check_kind(options.output)
    if options.file is None and sys.stdin.isatty():
        raise InputError("no FILE, and standard input is a terminal; see polyvec embed --help")
    source = options.file or as_stream(sys.stdin.buffer)
    records = read_texts(source, column=options.column, id_column=options.id_column)
    _write(options, records)


def _write(options: argparse.Namespace, records) -> None:
    """Embed in windows; only the texts of one window are held."""
    from polyvec.data.vectors import vector_file
    from polyvec.embed.encoding import EncodeReport, RunOptions

    first = _peek(records)
    embedder = common.load_model(options)
    report = EncodeReport()
    kept: list = []
    windows = embedder.encode_iter(
        _texts(first, kept),
        prompt=options.prompt,
        prompt_name=options.prompt_name,
        options=RunOptions(options.batch_size),
        report=report,
        precision=options.precision,
        truncate_dim=options.truncate_dim,
        normalize_embeddings=options.normalize,
    )
    with vector_file(options.output) if options.output else _stdout() as write:
        for vectors in windows:
            write(kept[: len(vectors)], vectors)
            del kept[: len(vectors)]
    if options.output:
        shape = f"{report.num_texts} x {options.truncate_dim or embedder.get_embedding_dimension()}"
        print(f"{options.output}: {shape}, {options.precision}", file=sys.stderr)


def _peek(records):
    """Read the first record before any weight loads: a wrong file fails at once."""
    import itertools

    records = iter(records)
    first = next(records, None)
    return itertools.chain([] if first is None else [first], records)


def _texts(records, kept: list):
    for record in records:
        kept.append(record)
        yield record.text


class _stdout:
    def __enter__(self):
        from polyvec.data.vectors import jsonl_lines

        return lambda records, vectors: sys.stdout.writelines(jsonl_lines(records, vectors))

    def __exit__(self, *error) -> None:
        sys.stdout.flush()
