"""Real texts that every machine has: the docstrings of the Python installation.

Every public module, class and function of the standard library, as pydoc would show them.
"""

import contextlib
import importlib
import inspect
import io
import pkgutil
import sys
import types
import warnings
from collections.abc import Iterator

from polyvec.data.texts import Record

# Imports with effects (a web page, printed poems, windows), or tests, not documentation.
EFFECTS = {"antigravity", "this", "idlelib", "test", "tkinter", "turtle", "turtledemo"}
# What `os` and `os.path` are made of, which is documented there.
HALVES = {"posix", "nt", "posixpath", "ntpath", "genericpath"}
# Gone from Python 3.12 and 3.13; setuptools puts its own in the place of distutils.
REMOVED = {"distutils", "lib2to3"}
SKIPPED = EFFECTS | HALVES | REMOVED
TESTS = {"tests", "test", "idle_test"}


def standard_library() -> list[Record]:
    """A record for each documented public name: its id is the name, its text name and docstring."""
    found: dict[str, str] = {}
    for name in sorted(sys.stdlib_module_names - SKIPPED | {"os.path"}):
        for module_name, module in _modules(name):
            for member, thing in _members(module_name, module):
                # A docstring may be a property, or missing under python -OO.
                raw = thing.__doc__
                text = inspect.cleandoc(raw) if isinstance(raw, str) else ""
                if text:
                    found.setdefault(member, f"{member}: {text}")
    return [Record(name, text) for name, text in sorted(found.items())]


def _modules(name: str) -> Iterator[tuple[str, types.ModuleType]]:
    """The module of that name and those below it, none of them private."""
    last = name.rpartition(".")[2]
    module = None if last.startswith("_") or last in TESTS else _import(name)
    if module is None:
        return
    yield name, module
    for info in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        yield from _modules(info.name)


def _import(name: str) -> types.ModuleType | None:
    """The module, or None for one that this platform or build does not have."""
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
    """The module itself, and the classes and functions that it lists, or else defines."""
    yield module_name, module
    listed = getattr(module, "__all__", None)
    for name, thing in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        is_own = getattr(thing, "__module__", None) == module_name
        if is_own if listed is None else name in listed:
            yield f"{module_name}.{name}", thing
