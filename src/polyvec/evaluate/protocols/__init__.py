"""How each kind of task is measured: one function a kind, from an encoder and data to an outcome.

To add a kind: its dataclass in data/task_sets.py, its function in a file here, its line below.
"""

from collections.abc import Callable
from typing import Any

from polyvec.data.tasks.sets import (
    BitextSet,
    ClassificationSet,
    ClusteringSet,
    ConditionalStsSet,
    InstructionSet,
    PairSet,
    RetrievalSet,
    StsSet,
    SummarySet,
)
from polyvec.errors import DataError, known
from polyvec.evaluate.outcome import Encoder, Outcome
from polyvec.evaluate.protocols.bitext import bitext
from polyvec.evaluate.protocols.classification import classification
from polyvec.evaluate.protocols.clustering import clustering
from polyvec.evaluate.protocols.conditional_sts import conditional_sts
from polyvec.evaluate.protocols.instruction import instruction
from polyvec.evaluate.protocols.pair_classification import pair_classification
from polyvec.evaluate.protocols.reranking import reranking
from polyvec.evaluate.protocols.retrieval import retrieval
from polyvec.evaluate.protocols.sts import sts
from polyvec.evaluate.protocols.summarization import summarization

Protocol = Callable[..., Outcome]


def ranking(encoder: Encoder, data: RetrievalSet, **options: Any) -> Outcome:
    """Reranking where the data brings candidates, else retrieval."""
    return (reranking if data.candidates else retrieval)(encoder, data, **options)


PROTOCOLS: dict[type, Protocol] = {
    StsSet: sts,
    ConditionalStsSet: conditional_sts,
    RetrievalSet: ranking,
    ClassificationSet: classification,
    ClusteringSet: clustering,
    PairSet: pair_classification,
    BitextSet: bitext,
    SummarySet: summarization,
    InstructionSet: instruction,
}


def run(encoder: Encoder, data: Any, **options: Any) -> Outcome:
    """Scores of a model on a data set, by the protocol of its kind; options are the protocol's.

    Raises DataError for a data set of no known kind, or one that the protocol cannot measure.
    """
    protocol = PROTOCOLS.get(type(data))
    if protocol is None:
        kind = type(data).__name__
        names = [each.__name__ for each in PROTOCOLS]
        raise DataError(f"no protocol measures a {kind}." + known(kind, names))
    return protocol(encoder, data, **options)


__all__ = [
    "PROTOCOLS",
    "Protocol",
    "bitext",
    "classification",
    "clustering",
    "conditional_sts",
    "instruction",
    "pair_classification",
    "ranking",
    "reranking",
    "retrieval",
    "run",
    "sts",
    "summarization",
]
