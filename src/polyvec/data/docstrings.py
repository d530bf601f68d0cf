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

# Imports with effects (a web page, printed poems, windows) or tests, not documentation.
SKIPPED = {"antigravity", "this", "idlelib", "lib2to3", "test", "tkinter", "turtle", "turtledemo"}
SKIPPED_PARTS = {"tests", "test", "idle_test", "__main__"}


def standard_library() -> list[Record]:
    """A record for each documented public name: its id is the name, its text name and docstring."""
    found: dict[str, str] = {}
    for module in _modules():
        for name, thing in _members(module):
            # A class's or function's own docstring, not one inherited from `object`.
            text = inspect.cleandoc(thing.__doc__ or "") if isinstance(thing.__doc__, str) else ""
            if text:
                found.setdefault(name, f"{name}: {text}")
    return [Record(name, text) for name, text in sorted(found.items())]


def _modules() -> Iterator[types.ModuleType]:
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in SKIPPED:
            continue
        module = _import(name)
        if module is None:
            continue
        yield module
        for info in pkgutil.walk_packages(
            getattr(module, "__path__", []), f"{name}.", lambda _: None
        ):
            parts = info.name.split(".")
            if not any(part.startswith("_") or part in SKIPPED_PARTS for part in parts):
                submodule = _import(info.name)
                if submodule is not None:
                    yield submodule


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


def _members(module: types.ModuleType) -> Iterator[tuple[str, object]]:
    yield module.__name__, module
    listed = getattr(module, "__all__", None)
    for name, thing in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        # What a module lists, or defines itself, or gets from its private C half (posix -> os).
        home = getattr(thing, "__module__", None) or ""
        if (
            (name in listed)
            if listed is not None
            else home in (module.__name__, "builtins", "posix")
        ):
            yield f"{module.__name__}.{name}", thing
