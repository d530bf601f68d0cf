"""Build an index that `polyvec search` reads: a folder, or a collection of a server by its URL.

The index holds the texts of the files afterwards, and no others; with --add, besides those that
it has. Texts that it already holds are not embedded again. An interrupted build resumes where it
stopped. Without polyvec[index], --plain writes plain files. --from and --to copy an index to
another place and compare the two.

example: printf 'a cat\\na dog\\n' | polyvec index /tmp/pets
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.cli import common
from polyvec.errors import InputError

if TYPE_CHECKING:
    from polyvec.data.chunking import Chunker
    from polyvec.data.texts import Record


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", help="write the index to this folder, or to this URL")
    common.input_options(parser, many=True)
    parser.add_argument(
        "--metadata",
        type=_names,
        metavar="FIELD,...",
        help="keep these columns beside the texts, for filters; default: all but text and id; none",
    )
    parser.add_argument(
        "--chunk",
        metavar="KIND",
        help="cut texts into chunks: fixed, sentence or recursive, with settings in quotes: "
        "'sentence size=128 overlap=16 header=title'; 'late by=sentence size=128' pools their "
        "vectors from the whole text's states",
    )
    done = parser.add_mutually_exclusive_group()
    done.add_argument(
        "--add", action="store_true", help="add to the index, in place of texts of equal ids"
    )
    done.add_argument("--delete", nargs="+", metavar="ID", help="delete the texts of these ids")
    done.add_argument(
        "--compact", action="store_true", help="give back space, and bring the index up to date"
    )
    done.add_argument(
        "--plain",
        action="store_true",
        help="write plain files, which need no polyvec[index]; searched exactly, built as a whole",
    )
    done.add_argument(
        "--from",
        dest="source",
        metavar="PLACE",
        help="copy the index of this folder or URL to that of --to; run again, it goes on",
    )
    parser.add_argument(
        "--to", dest="target", metavar="PLACE", help="the folder or URL that --from is copied to"
    )
    parser.set_defaults(later="file")
    common.prompt_options(parser)
    parser.add_argument("--truncate-dim", type=common.positive, help="keep this many dimensions")
    common.model_option(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.index.engines import engine_of

    if options.source is not None or options.target is not None:
        _move(options)
        return
    if options.folder is None:
        raise InputError("which index? Give a folder or a URL: polyvec index FOLDER FILE")
    if not options.plain:
        engine_of(options.folder)  # a package that is missing is known before the model loads
    if options.delete or options.compact:
        _change(options)
        return
    num_texts, report = _add(options) if options.add else _build(options)
    deleted = f", {report.num_deleted} deleted" if report.num_deleted else ""
    print(
        f"{options.folder}: {num_texts} texts, {report.num_embedded} newly embedded{deleted}",
        file=sys.stderr,
    )
    folder = options.folder if not options.folder.startswith("-") else f"./{options.folder}"
    # The index knows how its model was loaded, but trust is the user's to give.
    trust = ["--trust-remote-code"] if options.trust_remote_code else []
    command = shlex.join(["polyvec", "search", folder, "your question", *trust])
    print(f"next: {command}", file=sys.stderr)


def _move(options: argparse.Namespace) -> None:
    """--from and --to."""
    from polyvec.index.engines.places import shown
    from polyvec.index.move import move

    if options.source is None or options.target is None:
        raise InputError("--from and --to go together: the place of an index, and another one")
    if options.folder is not None:
        raise InputError(f"--from and --to copy an index, and read no FILE: {options.folder}")
    moved = move(options.source, options.target)
    print(
        f"{shown(options.target)}: {moved.num_texts} texts, {moved.num_sent} sent now, "
        f"all compared; {moved.num_searched} searches of both agree on {moved.agreement:.1%} "
        "of the nearest",
        file=sys.stderr,
    )


def _change(options: argparse.Namespace) -> None:
    """--delete and --compact, which need no model and no texts."""
    from polyvec.index.chunked import chunks_from
    from polyvec.index.store import Index

    if options.file:
        raise InputError(
            f"--{'delete' if options.delete else 'compact'} reads no FILE: {options.file[0]}"
        )
    with Index.open(options.folder) as index:
        if options.compact:
            index.compact()
            print(f"{options.folder}: {len(index)} texts", file=sys.stderr)
            return
        names = options.delete
        if index.description.chunking:  # an id may be a document's
            names = [*names, *(n for each in names for n in chunks_from(index.engine, each))]
        num_deleted = index.delete(list(dict.fromkeys(names)))
        print(f"{options.folder}: {len(index)} texts, {num_deleted} deleted", file=sys.stderr)


def _add(options: argparse.Namespace) -> tuple[int, Any]:
    from polyvec.index.chunked import chunks_from
    from polyvec.index.store import Index

    if any(common.prompt_choice(options).values()):
        raise InputError(
            "--add uses the prompt that the index was built with; leave out --prompt, "
            "--prompt-name and --role"
        )
    with Index.open(options.folder) as index:
        records = list(_records(options))
        made = index.description
        common.as_built(options, made)
        embedder = common.load_truncated(options)
        chunker = _chunker(options.chunk or made.chunking, embedder)
        if (chunker.name if chunker else "") != made.chunking:
            raise InputError(
                f"{options.folder}: built with --chunk {made.chunking or 'not given'!r}; leave it "
                "out, or build the index again"
            )
        parts = _cut(records, chunker)
        report = index.add(
            parts,
            embedder,
            late=_whole(records, chunker),
            batch_size=options.batch_size,
            truncate=options.truncate,
        )
        if chunker:  # of a document that had more chunks before
            counts = Counter(each.metadata["document"] for each in parts)
            gone = [n for r in records for n in chunks_from(index.engine, r.id, counts[r.id])]
            report = replace(report, num_deleted=index.delete(gone))
        return len(index), report


def _build(options: argparse.Namespace) -> tuple[int, Any]:
    from polyvec.index.plain import PlainIndex
    from polyvec.index.store import Index

    records = list(_records(options))
    embedder = common.load_truncated(options)
    chunker = _chunker(options.chunk, embedder)
    if chunker and options.plain:
        raise InputError("--plain keeps no chunks; leave out --chunk")
    kind: Any = PlainIndex if options.plain else Index
    told: dict[str, Any] = {"chunking": chunker.name if chunker else ""}
    told["late"] = _whole(records, chunker)
    if options.plain:
        told = {}
    index, report = kind.build(
        options.folder,
        _cut(records, chunker),
        embedder,
        **told,
        model=common.model_name(options),
        scale=(options.scale or "full") if common.is_recipe(options) else "",
        attention=options.attention or "",
        options=common.loaded_with(options),
        batch_size=options.batch_size,
        truncate=options.truncate,
        **common.prompt_choice(options),
    )
    return len(index), report


def _records(options: argparse.Namespace) -> "Iterator[Record]":
    """The texts of all files; of several, an id begins with the file's name, as of a folder."""
    metadata = True if options.metadata is None else options.metadata
    files = options.file or [None]
    if len({Path(each).name for each in options.file}) < len(options.file):
        raise InputError("two FILEs have one name, and so equal ids; give the folder above them")
    for each in files:
        one = argparse.Namespace(**{**vars(options), "file": each})
        for record in common.read_input(one, metadata=metadata):
            yield (
                record if len(files) == 1 else replace(record, id=f"{Path(each).name}:{record.id}")
            )


def _chunker(text: str | None, embedder: Any) -> "Chunker | None":
    """What --chunk says, with sizes in the model's tokens, if its tokens are known."""
    from polyvec.data.chunking import load_chunker

    if not text:
        return None
    tokenizer = getattr(embedder, "text_tokenizer", None)
    spans = tokenizer.spans if tokenizer is not None else None
    return load_chunker(common.kind_table("--chunk", text), spans)


def _cut(records: "list[Record]", chunker: "Chunker | None") -> "list[Record]":
    from polyvec.index.chunked import chunk_records

    return list(chunk_records(records, chunker)) if chunker else records


def _whole(records: "list[Record]", chunker: "Chunker | None") -> dict[str, str] | None:
    """The texts of the documents, by id, if their chunks are late ones."""
    return {each.id: each.text for each in records} if chunker and chunker.late else None


def _names(value: str) -> list[str]:
    return [] if value == "none" else [each.strip() for each in value.split(",") if each.strip()]
