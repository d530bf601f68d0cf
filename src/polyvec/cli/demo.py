"""Index the docstrings of this Python's standard library, then answer five questions.

Each name is embedded with the first sentence of its docstring. The index is reused: a second run
embeds nothing.

example: polyvec demo --folder /tmp/python-docs
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

QUESTIONS = (
    "run a child process and capture its output",
    "parse a date from a string",
    "copy an object with everything inside it",
    "insert an item into a sorted list",
    "find the most common elements in a list",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", help="folder of the index; default: in the user's cache")


def run(options: argparse.Namespace) -> None:
    from polyvec.cli.search_output import show
    from polyvec.data.docstrings import summaries
    from polyvec.embed.embedder import Embedder
    from polyvec.embed.formats.sources import DEFAULT_MODEL
    from polyvec.index.plain import PlainIndex

    folder = Path(options.folder or _cache_folder())
    records = summaries()
    print(f"{len(records)} docstrings from the standard library of Python {sys.version.split()[0]}")
    embedder = Embedder.from_pretrained()
    began = time.perf_counter()
    index, report = PlainIndex.build(
        folder, records, embedder, model=DEFAULT_MODEL, show_progress_bar=True
    )
    seconds = time.perf_counter() - began
    if report.num_embedded:
        speed = report.num_embedded / seconds
        print(f"embedded {report.num_embedded} texts in {seconds:.1f} s: {speed:.0f} texts/s")
    else:
        print(f"{folder} already holds all {report.num_texts} vectors; nothing was embedded")
    found = index.search(list(QUESTIONS), embedder, top_k=3)
    for question, hits in zip(QUESTIONS, found, strict=True):
        print(f"\n{question}")
        show(hits, question)
    command = [_program(), "search", str(folder), "your question"]
    print(f"\nAsk your own: {shlex.join(command)}")


def _cache_folder() -> Path:
    from polyvec.storage.files import cache_folder

    # The standard library, and so the index, differs from one Python version to the next.
    return cache_folder(f"demo-{sys.version_info.major}.{sys.version_info.minor}")


def _program() -> str:
    """The program as the user called it, so that the printed command can be pasted."""
    return sys.argv[0] if Path(sys.argv[0]).name == "polyvec" else "polyvec"
