"""Real texts that every machine has: the docstrings of the Python installation.

Covers every public module, class and function of the standard library that pydoc documents.
"""

import contextlib
import importlib
import inspect
import io
import pkgutil
import re
import sys
import types
import warnings
from collections.abc import Iterator

from polyvec.data.texts import Record

# Importing these opens a web page or a window or prints a poem, or they are tests.
EFFECTS = {"antigravity", "this", "idlelib", "test", "tkinter", "turtle", "turtledemo"}
# Platform halves of `os` and `os.path`, which document the same functions.
HALVES = {"posix", "nt", "posixpath", "ntpath", "genericpath"}
# Removed in Python 3.12 and 3.13; setuptools installs a replacement of distutils.
REMOVED = {"distutils", "lib2to3"}
SKIPPED = EFFECTS | HALVES | REMOVED
TESTS = {"tests", "test", "idle_test"}

LONGEST = 400  # characters; two lists of grammar rules would exceed a model's window
# Docstrings of C functions often begin with the call: "strptime(string, format) -> struct_time".
SIGNATURE = re.compile(r"--$|[\w.]+\([^)]*\)(\s*->\s*[\w.,\[\] ()]*?)?(\s*(--|-|:)\s+|\s*$)")
# A capital letter after the full stop, so that "e.g. a list" stays one sentence.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def standard_library() -> list[Record]:
    """A record for each documented public name; text is "name: docstring", sorted by name."""
    return [Record(name, f"{name}: {text}") for name, text in _docstrings()]


def summaries() -> list[Record]:
    """A record for each documented public name; text is "name: first sentence of the docstring".

    For search: whole docstrings are mostly about parameters, which hides what a function is for.
    """
    return [Record(name, f"{name}: {summary(text)}") for name, text in _docstrings()]


def summary(docstring: str) -> str:
    """First sentence of a docstring, on one line, without a leading signature.

    >>> summary("gcd(*integers)\\n\\nGreatest Common\\nDivisor. Of none it is 0.")
    'Greatest Common Divisor.'
    """
    lines = inspect.cleandoc(docstring).splitlines()
    while lines and (match := SIGNATURE.match(lines[0])):
        lines[:1] = [rest] if (rest := lines[0][match.end() :]) else []
    # Nothing but signatures: better those than nothing.
    body = "\n".join(lines).strip() or inspect.cleandoc(docstring)
    paragraph = " ".join(body.split("\n\n")[0].split())
    return SENTENCE_END.split(paragraph)[0][:LONGEST]


def _docstrings() -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for name in sorted(sys.stdlib_module_names - SKIPPED | {"os.path"}):
        for module_name, module in _modules(name):
            for member, thing in _members(module_name, module):
                # A docstring may be a property, or missing under python -OO.
                raw = thing.__doc__
                text = inspect.cleandoc(raw) if isinstance(raw, str) else ""
                if text:
                    found.setdefault(member, text)
    return sorted(found.items())


def _modules(name: str) -> Iterator[tuple[str, types.ModuleType]]:
    """The module of that name and its public submodules."""
    last = name.rpartition(".")[2]
    module = None if last.startswith("_") or last in TESTS else _import(name)
    if module is None:
        return
    yield name, module
    for info in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        yield from _modules(info.name)


def _import(name: str) -> types.ModuleType | None:
    """The module, or None if this platform or build lacks it."""
    quiet = io.StringIO()
    with (
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
        warnings.catch_warnings(),
        contextlib.suppress(ImportError, OSError, AttributeError, RuntimeError),
    ):
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
    return None


def _members(module_name: str, module: types.ModuleType) -> Iterator[tuple[str, object]]:
    """The module itself, and the classes and functions in its __all__, or else defined in it."""
    yield module_name, module
    listed = getattr(module, "__all__", None)
    for name, thing in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        # bisect.insort says "_bisect": C implementations name the private module.
        is_own = (getattr(thing, "__module__", None) or "").removeprefix("_") == module_name
        if is_own if listed is None else name in listed:
            yield f"{module_name}.{name}", thing
