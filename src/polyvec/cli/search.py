"""The nearest texts of an index: score, id and first line of each.

example: polyvec search /tmp/pets kitten --top-k 1
"""

import argparse
import json

from polyvec.cli import common


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="the index")
    parser.add_argument("query", nargs="+", help="one question, or several in quotes")
    parser.add_argument("-k", "--top-k", type=common.positive, default=5, help="default: 5")
    parser.add_argument("--json", action="store_true", help="whole texts as JSON lines")
    common.model_option(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.index.store import Index

    index = Index.open(options.folder)
    options.model = options.model or index.manifest.model or None
    embedder = common.load_model(options)
    found = index.search(options.query, embedder, top_k=options.top_k)
    for query, hits in zip(options.query, found, strict=True):
        if options.json:
            for hit in hits:
                line = {"query": query, "id": hit.id, "score": hit.score, "text": hit.text}
                print(json.dumps(line, ensure_ascii=False))
        else:
            if len(options.query) > 1:
                print(query)
            show(hits)


def show(hits) -> None:
    """Score, id and first line of each hit, a line each."""
    for hit in hits:
        first_line = next((line for line in hit.text.splitlines() if line.strip()), "")
        text = first_line.removeprefix(f"{hit.id}: ")
        print(f"  {hit.score:.3f}  {hit.id}  {text[:100]}")
