"""How each kind of task is measured: a function from an encoder and data to scores.

To add a kind: its entry in data/tasks/kinds.py, and a file here with a function, both of its name.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, cast

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import TaskSet
from polyvec.errors import DataError, SettingsError, known
from polyvec.evaluate.outcome import Encoder, Outcome
from polyvec.registry import Registry

Protocol = Callable[..., Outcome]


def _protocol(kind: str) -> Protocol:
    name = KINDS[kind].protocol or kind
    return cast(Protocol, getattr(importlib.import_module(f"{__name__}.{name}"), name))


# By the kind's name; options are keyword-only arguments of the function.
PROTOCOLS: Registry[Protocol] = Registry("protocol", {name: _protocol(name) for name in KINDS})


def run(encoder: Encoder, data: TaskSet, **options: Any) -> Outcome:
    """Scores of a model on a data set, by the protocol of its kind; options are the protocol's.

    Raises DataError for a data set of unknown kind or one that the protocol cannot measure,
    SettingsError for an option that the protocol does not have.
    """
    kind = data.kind if isinstance(data, TaskSet) else type(data).__name__
    if kind not in PROTOCOLS:
        raise DataError(f"no protocol for data of kind {kind!r}.{known(kind, PROTOCOLS)}")
    protocol = PROTOCOLS[kind]
    takes = options_of(protocol)
    for name in options:
        if name not in takes:
            raise SettingsError(f"{data.name}: {kind} has no option {name!r}.{known(name, takes)}")
    return protocol(encoder, data, **options)


def options_of(protocol: Protocol) -> list[str]:
    """Names of a protocol's keyword-only arguments."""
    found = inspect.signature(protocol).parameters.values()
    return [each.name for each in found if each.kind is inspect.Parameter.KEYWORD_ONLY]


__all__ = ["PROTOCOLS", "Protocol", "options_of", "run"]
