"""What comes from the installed sentence-transformers, imported when it is first used."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from polyvec.errors import MissingExtraError


def attribute(module: str, name: str) -> Any:
    """A name of one of sentence-transformers' modules; MissingExtraError if it isn't installed."""
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("sentence_transformers"):
            raise
        raise MissingExtraError("sentence-transformers", "sentence-transformers", name) from None
    if not hasattr(found, name):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return getattr(found, name)


def names_of(module: str, *, classes: bool = False) -> Callable[[str], Any]:
    """A module's `__getattr__` that looks names up in one of sentence-transformers' modules.

    With `classes` those of classes only.
    """

    def look_up(name: str) -> Any:
        if name.startswith("__") or (classes and not name[0].isupper()):
            raise AttributeError(name)  # also where Python looks for a submodule first
        return attribute(module, name)

    return look_up


def counterpart(name: str, own: type) -> type:
    """sentence-transformers' class of this name once that package is imported, else our own.

    Our models answer it as their `__class__`, so that `isinstance(model, SentenceTransformer)`
    holds in BERTopic, KeyBERT, mteb, and the losses: Python's way for one object to stand for
    another.
    """
    found = getattr(sys.modules.get("sentence_transformers"), name, None)
    return found if isinstance(found, type) else own


def blank(cls: type) -> Any:
    """An object of the class without its state, for pickle.

    pickle's own way compares `__class__` with the type, which differ here.
    """
    return object.__new__(cls)
