"""Find texts of an index: by meaning, by words, or by both, with filters and reranking.

Prints score, id and the part of the text that fits best; of a chunk its document and range of
characters. The index may be a folder or the URL of a server.

example: polyvec search /tmp/pets kitten --top-k 1
"""

import argparse
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polyvec.cli import common
from polyvec.errors import InputError, PolyvecError

if TYPE_CHECKING:
    from polyvec.index.records import Hit
    from polyvec.index.store import Index

COMMANDS = """:filter EXPRESSION   let through only texts with this metadata; without one, all
:dense  :words  :hybrid   search by meaning, by words, or by both
:k N   print N texts
:explain   say why each text was found, or stop saying so
:quit   end"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="search the index in this folder, or at this URL")
    parser.add_argument(
        "query",
        nargs="*",
        type=common.text,
        help="search for this text, or for several texts in quotes",
    )
    parser.add_argument(
        "-k", "--top-k", type=common.positive, default=5, help="print this many texts; default: 5"
    )
    parser.add_argument(
        "--filter",
        metavar="F",
        help='only texts with this metadata: \'year >= 2020 and lang in ("en", "de")\'',
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--hybrid", action="store_true", help="fuse the model's ranking with BM25's")
    ways.add_argument(
        "--words", action="store_true", help="rank by the words that are shared, BM25"
    )
    parser.add_argument(
        "--rerank",
        metavar="KIND",
        help="order the best 50 anew by a reranker, with settings in quotes: "
        "'cross_encoder model=FOLDER'",
    )
    parser.add_argument(
        "--explain", action="store_true", help="say what each component scored, and by which words"
    )
    parser.add_argument("--exact", action="store_true", help="use no approximate index")
    parser.add_argument(
        "-i", "--interactive", action="store_true", help="read queries, and :help, from stdin"
    )
    parser.add_argument("--json", action="store_true", help="print whole texts as JSON lines")
    parser.set_defaults(later="query")
    common.prompt_options(parser)
    parser.add_argument("--truncate-dim", type=common.positive, help="keep this many dimensions")
    common.model_option(parser)


@dataclass
class Searcher:
    """An index, its model, and how to ask it; the interactive mode changes the latter."""

    index: "Index"
    embedder: Any
    options: argparse.Namespace
    mode: str
    filter: str
    top_k: int
    explain: bool
    rerank: Any = None

    def search(self, queries: list[str]) -> "list[list[Hit]]":
        """Hits of each query."""
        how: Any = {"mode": self.mode, **common.prompt_choice(self.options)}
        return self.index.search(
            queries,
            self.embedder,
            top_k=self.top_k,
            filter=self.filter,
            explain=self.explain,
            rerank=self.rerank,
            exact=self.options.exact,
            truncate=self.options.truncate,
            **how,
        )

    def show(self, query: str, hits: "list[Hit]") -> None:
        """Print them as the options say."""
        from polyvec.cli.search_output import json_line, show

        if self.options.json:
            for hit in hits:
                print(json_line(query, hit))
        else:
            show(hits, query)

    def command(self, line: str) -> bool:
        """Do what ":..." says; False to end."""
        name, _, value = line[1:].partition(" ")
        value = value.strip()
        if name in ("dense", "words", "hybrid") and not value:
            self.mode = name
        elif name == "filter":
            self.index.count(value)  # an unknown field is an error now
            self.filter = value
        elif name == "k":
            self.top_k = _whole(value)
        elif name == "explain" and not value:
            self.explain = not self.explain
        elif name in ("quit", "q", "exit"):
            return False
        elif name == "help":
            print(COMMANDS, file=sys.stderr)
        else:
            raise InputError(f"{line}: not a command; see :help")
        return True


def run(options: argparse.Namespace) -> None:
    from polyvec.index.store import Index

    if options.interactive and options.query:
        raise InputError("--interactive reads its queries from standard input; leave out QUERY")
    if not options.interactive and not options.query:
        raise InputError("no query: polyvec search FOLDER QUERY, or --interactive")
    if not all(query.strip() for query in options.query):
        raise InputError("the query is empty")
    with Index.open(options.folder) as index:
        index.count(options.filter)  # an unknown field is an error before the model loads
        mode = "words" if options.words else "hybrid" if options.hybrid else "dense"
        embedder = None
        if mode != "words" or options.interactive:
            common.as_built(options, index.description)
            embedder = common.load_truncated(options)
        searcher = Searcher(
            index, embedder, options, mode, options.filter or "", options.top_k, options.explain
        )
        if options.rerank:
            from polyvec.rerank.table import load_reranker

            searcher.rerank = load_reranker(common.kind_table("--rerank", options.rerank))
        if options.interactive:
            _interactive(searcher)
            return
        for query, hits in zip(options.query, searcher.search(options.query), strict=True):
            if len(options.query) > 1 and not options.json:
                print(query)
            searcher.show(query, hits)


def _interactive(searcher: Searcher) -> None:
    """Answer the lines of standard input until it ends, or :quit; errors end nothing."""
    print(f"{len(searcher.index)} texts; :help lists the commands", file=sys.stderr)
    while True:
        # On stderr, so that what is found can be piped on.
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return
        try:
            line = common.text(line.strip())
            if line.startswith(":"):
                if not searcher.command(line):
                    return
            elif line:
                searcher.show(line, searcher.search([line])[0])
                sys.stdout.flush()
        except (PolyvecError, argparse.ArgumentTypeError) as error:
            print(f"polyvec: {error}", file=sys.stderr)


def _whole(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f":k {value}: expected a whole number from 1")
    return int(value)
