"""Pairs of texts are asked about: the same group, or not? Groups are made again under the answers.

Few-shot clustering (Viswanathan et al. 2023, arXiv:2307.00524), which asks about the closest pairs.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from polyvec.cluster.asking import Asker, Question
from polyvec.cluster.constrained import contracted, pckmeans
from polyvec.cluster.feedback import FEEDBACK, Feedback
from polyvec.cluster.grouping import Grouping, Tools
from polyvec.cluster.ranges import COUNT, Ranges
from polyvec.cluster.uncertainty import closest_pairs

YES = 0


@FEEDBACK.register("pair")
@dataclass(frozen=True, slots=True)
class Pair(Feedback):
    """num_queries: pairs; choose: the closest ones or random ones. use: what answers do: "pckmeans"
    charges `weight` for each pair that groups break; "contract" makes one point of what belongs
    together, and leaves the rest of the answers out.
    """

    RANGES: ClassVar[Ranges] = {"num_queries": COUNT, "weight": (0, math.inf)}

    num_queries: int = 1000
    choose: Literal["closest", "random"] = "closest"
    use: Literal["pckmeans", "contract"] = "pckmeans"
    weight: float = 0.25
    prompt: str = "same"

    def apply(self, grouping: Grouping, asker: Asker, tools: Tools) -> tuple[Grouping, Tools]:
        pairs = self._pairs(grouping)
        texts = [asker.shown(each) for each in grouping.texts]
        questions = [
            Question({"first": texts[a], "second": texts[b]}, (a, b)) for a, b in pairs.tolist()
        ]
        calls = asker.choose("pair", self.prompt, questions)
        together: list[tuple[int, int]] = []
        apart: list[tuple[int, int]] = []
        for (a, b), call in zip(pairs.tolist(), calls, strict=True):
            if call.value is not None:
                (together if call.value == YES else apart).append((a, b))
                links = {True: "must link", False: "" if self.use == "contract" else "cannot link"}
                call.effect = links[call.value == YES]
        if not together and (self.use == "contract" or not apart):
            return grouping, tools
        vectors_NE, seed = grouping.vectors_NE, grouping.seed
        if self.use == "contract":
            labels_N = contracted(vectors_NE, grouping.num_groups, seed, together)
        else:
            labels_N = pckmeans(
                vectors_NE, grouping.labels_N, seed, together, apart, weight=self.weight
            )
        return grouping.regrouped(labels_N), tools

    def _pairs(self, grouping: Grouping) -> np.ndarray:
        if self.choose == "closest":
            return closest_pairs(grouping.vectors_NE, self.num_queries)
        num, draw = len(grouping.texts), grouping.draw()
        most = min(self.num_queries, num * (num - 1) // 2)
        found: dict[tuple[int, int], None] = {}
        while len(found) < most:
            a, b = sorted(int(each) for each in draw.choice(num, 2, replace=False))
            found[a, b] = None
        return np.array(list(found), np.int64).reshape(-1, 2)
