"""Feedback of a language model: what is asked about a grouping, and what the answers change.

To add one: a frozen dataclass whose fields are its settings and whose `apply` returns the changed
grouping, and its line in FEEDBACK.
"""

import abc

from polyvec.cluster.asking import Asker
from polyvec.cluster.grouping import Grouping, Tools
from polyvec.registry import Registry


class Feedback(abc.ABC):
    """A way to ask, and to use what is answered. `apply` may return other tools, too: the
    embedder that answers have trained.
    """

    @abc.abstractmethod
    def apply(self, grouping: Grouping, asker: Asker, tools: Tools) -> tuple[Grouping, Tools]: ...


FEEDBACK: Registry[type[Feedback]] = Registry(
    "feedback",
    accepts=lambda part: isinstance(part, type) and issubclass(part, Feedback),
    expected="a subclass of Feedback",
    elsewhere={
        "triplet": "polyvec.cluster.feedback.triplet:Triplet",
        "pair": "polyvec.cluster.feedback.pair:Pair",
        "label": "polyvec.cluster.feedback.label:Label",
        "keyphrase": "polyvec.cluster.feedback.keyphrase:Keyphrase",
        "reassign": "polyvec.cluster.feedback.reassign:Reassign",
        "merge": "polyvec.cluster.feedback.merge:Merge",
    },
)
