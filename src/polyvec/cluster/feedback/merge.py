"""Groups that are near each other are asked about by their summaries, and become one if alike.

KeyEvents (Nakshatri et al. 2023), where groups are of one event if their texts are near in time.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polyvec.cluster.asking import Asker, Question
from polyvec.cluster.constrained import components
from polyvec.cluster.feedback import FEEDBACK, Feedback
from polyvec.cluster.grouping import Grouping, Tools, unit
from polyvec.cluster.ranges import COUNT, Ranges
from polyvec.cluster.uncertainty import centroids, prototypes
from polyvec.errors import InputError

YES = 0


@FEEDBACK.register("merge")
@dataclass(frozen=True, slots=True)
class Merge(Feedback):
    """threshold: cosine of two groups' means from which they are asked about, the nearest first.
    num_queries: at most so many pairs. num_texts: central texts that a summary is written from.
    max_days: most days between the middles of two groups, where texts have dates.
    """

    RANGES: ClassVar[Ranges] = {
        "threshold": (-1, 1),
        "num_queries": COUNT,
        "num_texts": COUNT,
        "max_days": (0, math.inf),
    }

    threshold: float = 0.5
    num_queries: int = 200
    num_texts: int = 3
    max_days: float | None = None
    prompt: str = "same_group"
    prompt_summary: str = "summary"

    def apply(self, grouping: Grouping, asker: Asker, tools: Tools) -> tuple[Grouping, Tools]:
        if self.max_days is not None and grouping.days_N is None:
            raise InputError("feedback 'merge': max_days needs the date of each text")
        pairs = self._pairs(grouping)
        groups = sorted({group for pair in pairs for group in pair})
        central = prototypes(grouping.vectors_NE, grouping.labels_N, self.num_texts)
        summaries = self._summaries(grouping, asker, groups, central)
        both = [pair for pair in pairs if pair[0] in summaries and pair[1] in summaries]
        questions = [
            Question(
                {"first": summaries[a], "second": summaries[b]},
                (int(central[a][0]), int(central[b][0])),
            )
            for a, b in both
        ]
        calls = asker.choose("merge", self.prompt, questions)
        together = []
        for (a, b), call in zip(both, calls, strict=True):
            if call.value is not None:
                # Groups are numbered anew afterwards: texts say which ones are meant.
                which = f"the groups of texts {central[a][0]} and {central[b][0]}"
                call.effect = f"{which}: {'one' if call.value == YES else 'two'}"
                together += [(a, b)] * (call.value == YES)
        if not together:
            return grouping, tools
        parts_K = components(grouping.num_groups, together)
        taken = grouping.labels_N >= 0
        labels_N = np.where(taken, parts_K[grouping.labels_N], -1)
        return grouping.regrouped(labels_N), tools

    def _pairs(self, grouping: Grouping) -> list[tuple[int, int]]:
        """The pairs of groups to ask about, the nearest first."""
        means = unit(centroids(grouping.vectors_NE, grouping.labels_N))
        similar_KK = means @ means.T
        near = np.triu(similar_KK >= self.threshold, 1)
        if self.max_days is not None and grouping.days_N is not None:
            middles = np.array(
                [
                    np.median(grouping.days_N[grouping.labels_N == group])
                    for group in range(grouping.num_groups)
                ]
            )
            near &= np.abs(middles[:, None] - middles[None]) <= self.max_days
        found = list(zip(*(each.tolist() for each in np.nonzero(near)), strict=True))
        found.sort(key=lambda pair: -similar_KK[pair])
        return found[: self.num_queries]

    def _summaries(
        self, grouping: Grouping, asker: Asker, groups: list[int], central: list[np.ndarray]
    ) -> dict[int, str]:
        questions = [
            Question(
                {"listed": "\n".join(asker.shown(grouping.texts[each]) for each in central[group])},
                tuple(central[group].tolist()),
            )
            for group in groups
        ]
        calls = asker.write("merge", self.prompt_summary, questions)
        for group, call in zip(groups, calls, strict=True):
            what = f"summary of the group of text {central[group][0]}"
            call.effect = "" if call.value is None else what
        return {
            group: call.value
            for group, call in zip(groups, calls, strict=True)
            if call.value is not None
        }
