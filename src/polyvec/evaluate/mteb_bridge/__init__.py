"""The bridge to mteb: our models and data in its tasks, its models in ours, one command line.

mteb is imported with the first of these names, which takes seconds.

>>> import mteb  # doctest: +SKIP
>>> mteb.evaluate(MtebEncoder(embedder), mteb.get_tasks(["STS12"]))  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

from polyvec.errors import MissingExtraError

if TYPE_CHECKING:
    from polyvec.evaluate.mteb_bridge.api import mteb_tasks, register, run_mteb
    from polyvec.evaluate.mteb_bridge.encoder import MtebEncoder, PromptUse
    from polyvec.evaluate.mteb_bridge.local import local_task
    from polyvec.evaluate.mteb_bridge.model import MtebModel

__all__ = [
    "MtebEncoder",
    "MtebModel",
    "PromptUse",
    "local_task",
    "mteb_tasks",
    "register",
    "run_mteb",
]
_HOMES = {
    "MtebEncoder": "encoder",
    "MtebModel": "model",
    "PromptUse": "encoder",
    "local_task": "local",
    "mteb_tasks": "api",
    "register": "api",
    "run_mteb": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    needs_mteb()
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def needs_mteb() -> None:
    """Raises MissingExtraError, with its pip command, where mteb is not installed."""
    try:
        import mteb  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "mteb":
            raise
        raise MissingExtraError("mteb", "mteb", "the bridge to mteb") from None
