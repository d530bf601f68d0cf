"""The command line: one file a verb. Heavy imports happen inside each verb's run().

Data goes to standard output, all else to standard error. Exit status: 0 done; 2 a mistake in
the options, the data or the machine, told in one line; 130 interrupted or asked to end; 141 the
reader of our output has gone.
"""

import argparse
import contextlib
import errno
import importlib
import io
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from polyvec import __version__
from polyvec.errors import InputError, PolyvecError

# torch has no type of its own for this on the CPU.
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")

VERBS = {
    "embed": "texts from a file or standard input become vectors",
    "index": "texts become an index on disk",
    "search": "find the nearest texts of an index",
    "evaluate": "score a model on data sets",
    "compare": "two models on the same data sets: which differences stand",
    "data": "rows, lengths, languages and repetitions of a folder; test texts in train",
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
    try:
        _check_streams()
        _end_as_interrupted()
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warning
            status = _run(arguments)
        sys.stdout.flush()
        return status
    except PolyvecError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing half-written is left under a final name", 130)
    except BrokenPipeError:
        return _fail("the reader of our output has closed it", 141)
    except OSError as error:
        return _fail(_told(error), 2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        return _fail("out of memory; try a smaller --batch-size", 2)


def _run(arguments: list[str] | None) -> int:
    try:
        options = parser().parse_args(arguments)
    except SystemExit as done:  # --help and --version, or an error that argparse has told
        return int(done.code or 0)
    options.run(options)
    return 0


def _check_streams() -> None:
    """Python has None for a stream that the caller closed; our output is UTF-8 everywhere."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the whole run
    if sys.stdout is None:
        raise InputError("standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def _end_as_interrupted() -> None:
    """`kill`, `timeout` and a closed terminal end us as Ctrl-C does, without temporary files."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # not in the main thread
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
                signal.signal(number, signal.default_int_handler)


def _told(error: OSError) -> str:
    """Where and what; an error without a file's name comes from writing to standard output."""
    if error.errno is None:
        return str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "no space left on the device" if full else error.strerror
    return f"{error.filename or 'standard output'}: {reason}"


def _fail(message: str, status: int) -> int:
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            # What nobody can take is dropped, or the flush at exit would complain again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError):
        print("polyvec: " + " ".join(message.split()), file=sys.stderr)
    return status


def _one_line_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print("polyvec: warning: " + " ".join(str(message).split()), file=sys.stderr)
