"""The command line: one file a verb. Heavy imports happen inside each verb's run()."""

import argparse
import errno
import importlib
import os
import sys
import warnings
from typing import NoReturn

from polyvec import __version__
from polyvec.errors import PolyvecError

VERBS = {
    "embed": "texts from a file or standard input become vectors",
    "index": "texts become an index on disk",
    "search": "find the nearest texts of an index",
    "evaluate": "score a model on data sets",
    "recipes": "list, show and check the systems of the literature",
    "demo": "index the docstrings of this Python and ask five questions",
}


class Parser(argparse.ArgumentParser):
    """argparse with our errors: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}. See {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The parser of `polyvec` with a sub-parser for each verb."""
    top = Parser(
        prog="polyvec",
        description="Texts to vectors with language models.",
        epilog="example: echo 'a cat' | polyvec embed --truncate-dim 4",
    )
    top.add_argument("--version", action="version", version=f"polyvec {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        module = importlib.import_module(f"polyvec.cli.{name}")
        sub = verbs.add_parser(
            name,
            help=summary,
            description=(module.__doc__ or "").strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit status, 2 for a user's mistake, told in one line."""
    warnings.showwarning = _one_line_warning
    options = parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
        return 0
    except PolyvecError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing half-written is left under a final name", 130)
    except BrokenPipeError:
        # Whoever read our output has gone; a second flush at exit would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail("the reader of our output has closed it", 141)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"{error.filename or 'the output'}: no space left on the device", 2)
        return _fail(f"{error.filename or 'file'}: {error.strerror or error}", 2)
    except MemoryError:
        return _fail("out of memory; try a smaller --batch-size", 2)


def _fail(message: str, status: int) -> int:
    print("polyvec: " + " ".join(message.split()), file=sys.stderr)
    return status


def _one_line_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"polyvec: warning: {message}", file=sys.stderr)
