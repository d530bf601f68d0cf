"""Keyphrases of each text are embedded, too, and both views of a text are grouped together.

The expansion of few-shot clustering (Viswanathan et al. 2023, arXiv:2307.00524).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polyvec.cluster.asking import Asker, Question
from polyvec.cluster.feedback import FEEDBACK, Feedback
from polyvec.cluster.grouping import Grouping, Tools, unit
from polyvec.cluster.ranges import COUNT, Ranges


@FEEDBACK.register("keyphrase")
@dataclass(frozen=True, slots=True)
class Keyphrase(Feedback):
    """num_queries: texts that get keyphrases, at random; all by default. A text without any has
    its own vector in both views.
    """

    RANGES: ClassVar[Ranges] = {"num_queries": COUNT}

    num_queries: int | None = None
    prompt: str = "keyphrases"

    def apply(self, grouping: Grouping, asker: Asker, tools: Tools) -> tuple[Grouping, Tools]:
        texts = [asker.shown(each) for each in grouping.texts]
        asked = grouping.draw().permutation(len(texts))[: self.num_queries].tolist()
        calls = asker.write(
            "keyphrase", self.prompt, [Question({"text": texts[each]}, (each,)) for each in asked]
        )
        own_NE = unit(grouping.vectors_NE)
        phrases = list(texts)
        for number, call in zip(asked, calls, strict=True):
            if call.value is not None:
                phrases[number] = call.value
                call.effect = f"keyphrases {call.value!r}"
        if all(call.value is None for call in calls):
            return grouping, tools
        written_NE = tools.embedded(phrases, "keyphrase")
        return grouping.again(np.concatenate([own_NE, written_NE], axis=1)), tools
