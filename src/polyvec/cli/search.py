"""Find the nearest texts of an index: score, id and first line of each.

example: polyvec search /tmp/pets kitten --top-k 1
"""

import argparse
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from polyvec.cli import common
from polyvec.errors import InputError

if TYPE_CHECKING:
    from polyvec.index.engines.interface import Description
    from polyvec.index.records import Hit


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="search the index in this folder")
    parser.add_argument(
        "query",
        nargs="+",
        type=common.text,
        help="search for this text, or for several texts in quotes",
    )
    parser.add_argument(
        "-k", "--top-k", type=common.positive, default=5, help="print this many texts; default: 5"
    )
    parser.add_argument("--json", action="store_true", help="print whole texts as JSON lines")
    common.prompt_options(parser)
    parser.add_argument("--truncate-dim", type=common.positive, help="keep this many dimensions")
    common.model_option(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.index.store import Index

    if not all(query.strip() for query in options.query):
        raise InputError("the query is empty")
    index = Index.open(options.folder)
    _as_built(options, index.description)
    embedder = common.load_truncated(options)
    found = index.search(
        options.query,
        embedder,
        top_k=options.top_k,
        truncate=options.truncate,
        **common.prompt_choice(options),
    )
    for query, hits in zip(options.query, found, strict=True):
        if options.json:
            for hit in hits:
                line = {"query": query, "id": hit.id, "score": hit.score, "text": hit.text}
                print(json.dumps(line, ensure_ascii=False))
        else:
            if len(options.query) > 1:
                print(query)
            show(hits)


def _as_built(options: argparse.Namespace, made: "Description") -> None:
    """Fill in the options that built the index, where the user names no other model."""
    if (options.recipe or options.model) and common.model_name(options) != made.model:
        return
    if made.scale:
        options.recipe, options.model = made.model, None
    elif not options.recipe:
        options.model = options.model or made.model or None
    options.scale = options.scale or made.scale or None
    options.attention = options.attention or made.attention or None
    common.fill_in(options, made.options)


def show(hits: "Iterable[Hit]") -> None:
    """Print score, id and first line of each hit."""
    for hit in hits:
        # Texts of docstrings begin with their id, which is printed already.
        words = hit.text.removeprefix(f"{hit.id}: ")
        text = next((line for line in words.splitlines() if line.strip()), "")
        print(f"  {hit.score:.3f}  {_visible(hit.id)}  {_visible(text[:100])}")


def _visible(text: str) -> str:
    """The text without characters that control a terminal; --json prints it unchanged."""
    return "".join(char if char.isprintable() else " " for char in text)
