"""Uncertain texts are asked about, and move to the group whose exemplar the model chooses.

The correction of few-shot clustering (Viswanathan et al. 2023, arXiv:2307.00524); with `propagate`,
ALUP (Liang et al. 2024): what was decided for a text goes to uncertain neighbours that are near.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polyvec.cluster.asking import Asker, Call, Question
from polyvec.cluster.feedback import FEEDBACK, Feedback
from polyvec.cluster.grouping import Grouping, Tools
from polyvec.cluster.ranges import COUNT, SHARE, Ranges
from polyvec.cluster.uncertainty import (
    RANKINGS,
    centroids,
    nearest_groups,
    neighbours,
    prototypes,
)


@FEEDBACK.register("reassign")
@dataclass(frozen=True, slots=True)
class Reassign(Feedback):
    """num_queries: texts asked about, by `select` among the `share` most uncertain of all.
    num_candidates: the nearest groups, of which the exemplar of one is chosen. propagate: so many
    nearest neighbours follow a text that moved, if they are among the uncertain ones and nobody
    asked about them.
    """

    RANGES: ClassVar[Ranges] = {
        "num_queries": COUNT,
        "share": SHARE,
        "num_candidates": (2, math.inf),
        "propagate": (0, math.inf),
    }

    num_queries: int = 500
    select: str = "margin"
    share: float = 0.2
    num_candidates: int = 5
    propagate: int = 0
    prompt: str = "exemplar"

    def apply(self, grouping: Grouping, asker: Asker, tools: Tools) -> tuple[Grouping, Tools]:
        vectors_NE, labels_N = grouping.vectors_NE, grouping.labels_N
        if grouping.num_groups < 2:
            return grouping, tools  # there is nothing to choose from
        draw = grouping.draw()
        order = RANKINGS.find(self.select)(vectors_NE, labels_N, draw)
        uncertain = order[: max(1, round(self.share * len(order)))]
        asked = uncertain[: self.num_queries]
        exemplars = [int(found[0]) for found in prototypes(vectors_NE, labels_N)]
        centers = centroids(vectors_NE, labels_N)
        near_NM, _ = nearest_groups(vectors_NE, centers, self.num_candidates)
        questions, orders = [], []
        for text in asked.tolist():
            groups = draw.permutation(near_NM[text])  # a model may prefer the first choice
            orders.append(groups)
            questions.append(self._question(grouping, asker, text, groups, exemplars))
        calls = asker.choose("reassign", self.prompt, questions)
        moved = labels_N.copy()
        for text, groups, call in zip(asked.tolist(), orders, calls, strict=True):
            if call.value is not None:
                moved[text] = groups[call.value]
                # Groups are numbered anew afterwards: texts say which ones are meant.
                old = f"the group of text {exemplars[labels_N[text]]}"
                call.effect = (
                    "stays"
                    if moved[text] == labels_N[text]
                    else f"moves from {old if labels_N[text] >= 0 else 'no group'} to that of "
                    f"text {exemplars[moved[text]]}"
                )
        if self.propagate:
            self._propagate(grouping, uncertain, asked, calls, moved)
        return grouping.regrouped(moved), tools

    def _question(
        self,
        grouping: Grouping,
        asker: Asker,
        text: int,
        groups: np.ndarray,
        exemplars: list[int],
    ) -> Question:
        chosen = [exemplars[group] for group in groups]
        lines = [
            f"Choice {number}: {asker.shown(grouping.texts[each])}"
            for number, each in enumerate(chosen, 1)
        ]
        return Question(
            {"query": asker.shown(grouping.texts[text]), "choices": "\n".join(lines)},
            (text, *chosen),
            choices=tuple(f"Choice {number}" for number in range(1, len(chosen) + 1)),
        )

    def _propagate(
        self,
        grouping: Grouping,
        uncertain: np.ndarray,
        asked: np.ndarray,
        calls: list[Call],
        moved: np.ndarray,
    ) -> None:
        near_NT = neighbours(grouping.vectors_NE, self.propagate)
        open_texts = set(uncertain.tolist()) - set(asked.tolist())
        for text, call in zip(asked.tolist(), calls, strict=True):
            if call.value is None or moved[text] == grouping.labels_N[text]:
                continue
            followers = [each for each in near_NT[text].tolist() if each in open_texts]
            open_texts -= set(followers)
            moved[followers] = moved[text]
            if followers:
                call.effect += f", with {len(followers)} neighbours"
