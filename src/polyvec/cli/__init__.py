"""The command line: one file per verb. Heavy imports happen inside each verb's run().

Data goes to standard output, everything else to standard error. Exit status: 0 success; 2 an error
in options, data or the machine, described in one line; 130 interrupted or terminated; 141 broken
pipe.
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
from typing import Any, NoReturn, TextIO

from polyvec import __version__
from polyvec.cli import common
from polyvec.errors import InputError, PolyvecError

# On the CPU torch raises a plain RuntimeError for it.
LONGEST = 3_000  # characters of a message
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")

VERBS = {
    "embed": "embed texts from a file or standard input",
    "verify": "check a folder of vectors that embed wrote",
    "plan": "calculate what a corpus costs: hours, money, disk, memory, machines",
    "index": "build an index on disk",
    "search": "find the nearest texts of an index",
    "serve": "serve models over HTTP, as OpenAI's embeddings",
    "evaluate": "score a model on data sets",
    "compare": "compare two models on the same data sets",
    "data": "import public data; count rows, lengths, languages; find test texts in train",
    "mine": "find hard negatives for pairs",
    "train": "train an embedder by the stages of a recipe",
    "recipes": "list, show, check and measure the recipes of published systems",
    "generate": "ask a language model about each row of a file",
    "synthesize": "make training data from texts with a language model",
    "relabel": "find false negatives and positives in training data",
    "compress": "keep what matters of a text, to an exact number of tokens",
    "cluster": "group texts, name the groups and draw a map of them",
    "audit": "attack a model's vectors, try defences, and write a page about it",
    "invert": "write the texts that an inverter finds for vectors",
    "demo": "index the docstrings of this Python and answer five questions",
}


# What messages of the Python API advise, and the same on the command line.
ADVICE = (
    (
        r"raise max_seq_length, or pass truncate='error' or 'silent'",
        "raise --max-seq-length, or pass --truncate error or silent",
    ),
    (r"truncate='warn'", "--truncate warn"),
    (r"name it with column=", "name it with --column"),
    (r"trust_remote_code=True", "--trust-remote-code"),
    (
        r"call embedder\.calibrate\(texts\) once and save, or pass calibration=",
        "pass --calibrate FILE",
    ),
    (r"call embedder\.calibrate\(texts\)", "pass --calibrate FILE"),
)


class Parser(argparse.ArgumentParser):
    """argparse, but errors are one line without the usage, exit status 2; "" is no value.

    `polyvec evaluate "$MODEL" ...` with an unset variable is a mistake, not the default model.
    Arguments for which an empty text means something have `type=common.text`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", None, common.not_empty)

    def add_subparsers(self, **options: Any) -> Any:
        action: Any = super().add_subparsers(**options)
        action.type = str  # of all that follows the verb: the verb's own parser checks that
        return action

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {_as_options(message)}. See {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    """The parser of `polyvec` with a sub-parser for each verb."""
    top = Parser(
        prog="polyvec",
        description="Turn texts into vectors with language models.",
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
    top.set_defaults(action=None)  # of verbs that have some
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a verb and return the exit status; a user's mistake is one line on stderr, and 2."""
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
        return _fail("interrupted; no incomplete file has a final name", 130)
    except BrokenPipeError:
        return _fail("standard output was closed by its reader", 141)
    except OSError as error:
        return _fail(_message(error), 2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        return _fail("out of memory; try a smaller --batch-size", 2)


def _run(arguments: list[str] | None) -> int:
    try:
        options, rest = (top := parser()).parse_known_args(arguments)
        if hasattr(options, "overrides"):  # argparse takes such words before the options only
            options.overrides += [each for each in rest if common.OVERRIDE.fullmatch(each)]
            rest = [each for each in rest if not common.OVERRIDE.fullmatch(each)]
        if hasattr(options, "later") and not any(each.startswith("-") for each in rest):
            # The same of a verb's last argument, of which there may be several.
            values = getattr(options, options.later)
            values += [common.text(each) for each in rest]
            rest = []
        if rest:
            # argparse would name the program, whose --help knows no verb's options.
            top.prog = " ".join(filter(None, (top.prog, options.verb, options.action)))
            top.error(f"unrecognized arguments: {' '.join(rest)}")
    except SystemExit as done:  # --help, --version, or an error that argparse has printed
        return int(done.code or 0)
    options.run(options)
    return 0


def _check_streams() -> None:
    """Replace or refuse closed streams, which Python sets to None; make output UTF-8 everywhere."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - open until exit
    if sys.stdout is None:
        raise InputError("standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def _end_as_interrupted() -> None:
    """Treat `kill`, `timeout` and a closed terminal like Ctrl-C, so that temporary files go."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored
                signal.signal(number, signal.default_int_handler)


def _message(error: OSError) -> str:
    """File and reason; an error without a file name comes from writing to standard output."""
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
            # Discard what cannot be written, or Python's flush at exit fails once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError):
        print("polyvec: " + _as_options(message), file=sys.stderr)
    return status


def _as_options(message: str) -> str:
    """One line, in which advice names the options of the command line."""
    for pattern, option in ADVICE:
        message = re.sub(pattern, option, message)
    line = " ".join(message.split())
    # Who passes a number of 5,000 digits does not need to read all of them.
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def _one_line_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print("polyvec: warning: " + _as_options(str(message)), file=sys.stderr)
