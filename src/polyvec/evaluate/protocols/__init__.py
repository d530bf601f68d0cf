"""How each kind of task is measured: a function from an encoder and data to scores.

To add a kind: its entry in data/tasks/kinds.py, its function in a file here, its line below.
"""

import inspect
from collections.abc import Callable
from typing import Any

from polyvec.data.tasks.sets import TaskSet
from polyvec.errors import DataError, SettingsError, known
from polyvec.evaluate.outcome import Encoder, Outcome
from polyvec.evaluate.protocols.bitext_mining import bitext_mining
from polyvec.evaluate.protocols.classification import classification
from polyvec.evaluate.protocols.clustering import clustering
from polyvec.evaluate.protocols.conditional_sts import conditional_sts
from polyvec.evaluate.protocols.instruction_retrieval import instruction_retrieval
from polyvec.evaluate.protocols.pair_classification import pair_classification
from polyvec.evaluate.protocols.reranking import reranking
from polyvec.evaluate.protocols.retrieval import retrieval
from polyvec.evaluate.protocols.sts import sts
from polyvec.evaluate.protocols.summarization import summarization
from polyvec.registry import Registry

Protocol = Callable[..., Outcome]

# By the kind's name in data/tasks/kinds.py; options are keyword-only arguments of the function.
PROTOCOLS: Registry[Protocol] = Registry(
    "protocol",
    {
        "sts": sts,
        "conditional_sts": conditional_sts,
        "pair_classification": pair_classification,
        "bitext_mining": bitext_mining,
        "summarization": summarization,
        "classification": classification,
        "clustering": clustering,
        "retrieval": retrieval,
        "reranking": reranking,
        "instruction_retrieval": instruction_retrieval,
        "instruction_reranking": instruction_retrieval,
    },
)


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


__all__ = [
    "PROTOCOLS",
    "Protocol",
    "bitext_mining",
    "classification",
    "clustering",
    "conditional_sts",
    "instruction_retrieval",
    "options_of",
    "pair_classification",
    "reranking",
    "retrieval",
    "run",
    "sts",
    "summarization",
]
