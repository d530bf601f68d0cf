"""Modules under sentence-transformers' own paths, as `sentence_transformer.losses`.

What has no file here is looked up in the installed package, under the same path, so that a script
changes the first word of its imports only.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from polyvec.errors import MissingExtraError
from polyvec.sentence_transformers.installed import names_of

ROOT = "polyvec.sentence_transformers."
THEIRS = "sentence_transformers."


class _Finder(MetaPathFinder, Loader):
    """Makes modules whose names are sentence-transformers', with our classes in their place."""

    def __init__(self, own: Callable[[str], Any]) -> None:
        self.own = own

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(ROOT):
            return None
        theirs = THEIRS + fullname.removeprefix(ROOT)
        try:
            found = find_spec(theirs)
        except ModuleNotFoundError as error:
            if error.name != THEIRS.rstrip("."):
                return None
            raise MissingExtraError(error.name, error.name.replace("_", "-"), fullname) from None
        return None if found is None else ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        place = module.__name__.removeprefix(ROOT)
        theirs = names_of(THEIRS + place)
        util = import_module(f"{ROOT}util") if place.startswith("util.") else None

        def look_up(name: str) -> Any:
            found = vars(util).get(name) if util is not None else None
            return found or self.own(name) or theirs(name)

        vars(module).update(__getattr__=look_up, __doc__=f"The names of {THEIRS}{place}.")


def install(own: Callable[[str], Any]) -> None:
    """Find such modules from now on; `own` gives our object of a name, or None."""
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.append(_Finder(own))  # last: what has a file here is found before
