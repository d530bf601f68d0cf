"""Feedback of a language model: what is asked about a grouping, and what the answers change.

To add one: a frozen dataclass whose fields are its settings and whose `apply` returns the changed
grouping, and its line in FEEDBACK.
"""

import abc
import dataclasses
from typing import Any, ClassVar, cast

from polyvec.cluster.asking import FOLDER, Asker
from polyvec.cluster.grouping import Grouping, Tools
from polyvec.cluster.ranges import Ranges, check_ranges
from polyvec.cluster.uncertainty import RANKINGS
from polyvec.registry import Registry
from polyvec.synthesize.prompt_files import prompt_file


class Feedback(abc.ABC):
    """A way to ask, and to use what is answered. `apply` may return other tools, too: the
    embedder that answers have trained.
    """

    RANGES: ClassVar[Ranges] = {}

    def __post_init__(self) -> None:
        """Settings are checked before anything is asked; SettingsError."""
        where = f"feedback {type(self).__name__.lower()!r}"
        check_ranges(self, self.RANGES, where)
        for field in dataclasses.fields(cast(Any, self)):
            value = getattr(self, field.name)
            if field.name.startswith("prompt"):
                prompt_file(value, where, FOLDER)
            elif field.name == "select":
                RANKINGS.find(value, where=where)

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
