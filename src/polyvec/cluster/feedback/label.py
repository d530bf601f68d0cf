"""Every text gets a short label, and text and label together are what is grouped.

IDAS (De Raedt et al. 2023, arXiv:2305.19783): prototypes are labelled first, every other text after
the nearest ones that have a label, so that texts of one group tend to get the same words.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polyvec.cluster.asking import Asker, Call, Question
from polyvec.cluster.choosing import silhouette
from polyvec.cluster.feedback import FEEDBACK, Feedback
from polyvec.cluster.grouping import Grouping, Tools, unit
from polyvec.cluster.ranges import COUNT, Ranges
from polyvec.cluster.uncertainty import neighbours, prototypes


@FEEDBACK.register("label")
@dataclass(frozen=True, slots=True)
class Label(Feedback):
    """num_shown: labelled neighbours in a prompt. at_once: texts that are asked about together,
    before their labels can be shown for others; the paper's code asks one by one. smooth: sizes of
    neighbourhoods over which vectors are averaged, of which the best by silhouette is taken; none:
    no smoothing.
    """

    RANGES: ClassVar[Ranges] = {
        "num_shown": (0, math.inf),
        "at_once": COUNT,
        "smooth": (2, math.inf),
    }

    num_shown: int = 8
    at_once: int = 64
    smooth: tuple[int, ...] = (5, 10, 15, 20, 25, 30, 35, 40, 45)
    prompt: str = "label"
    prompt_like: str = "label_like"

    def apply(self, grouping: Grouping, asker: Asker, tools: Tools) -> tuple[Grouping, Tools]:
        labels = self._labels(grouping, asker)
        known = [number for number, label in enumerate(labels) if label is not None]
        if not known:
            return grouping, tools
        vectors_NE = unit(grouping.vectors_NE).copy()
        views = tools.embedded([str(labels[number]) for number in known], "label")
        # A text without a label stays at its own vector.
        vectors_NE[known] = (vectors_NE[known] + views) / 2
        return self._smoothed(grouping, vectors_NE), tools

    def _labels(self, grouping: Grouping, asker: Asker) -> list[str | None]:
        texts = [asker.shown(each) for each in grouping.texts]
        first = [int(found[0]) for found in prototypes(grouping.vectors_NE, grouping.labels_N)]
        labels: list[str | None] = [None] * len(texts)
        calls = asker.write(
            "label", self.prompt, [Question({"text": texts[each]}, (each,)) for each in first]
        )
        done = set(first)
        rest = [each for each in range(len(texts)) if each not in done]
        order = grouping.draw().permutation(rest).tolist()
        parts = [order[i : i + self.at_once] for i in range(0, len(order), self.at_once)]
        for numbers, made in [(first, calls), *((part, None) for part in parts)]:
            if made is None:
                made = self._like(grouping, asker, texts, labels, numbers)
            for number, call in zip(numbers, made, strict=True):
                labels[number] = call.value
                call.effect = "" if call.value is None else f"label {call.value!r}"
        return labels

    def _like(
        self,
        grouping: Grouping,
        asker: Asker,
        texts: list[str],
        labels: list[str | None],
        numbers: list[int],
    ) -> list[Call]:
        """Labels of some texts, after the nearest texts that have one."""
        known = np.array([i for i, label in enumerate(labels) if label is not None], np.int64)
        vectors_NE = unit(grouping.vectors_NE)
        similar = vectors_NE[numbers] @ vectors_NE[known].T if len(known) else None
        questions = []
        for place, number in enumerate(numbers):
            near: list[int] = []
            if similar is not None:
                # The nearest stands last, next to the text.
                nearest = np.argsort(-similar[place], kind="stable")[: self.num_shown]
                near = known[nearest][::-1].tolist()
            shown = [{"text": texts[each], "label": labels[each]} for each in near]
            questions.append(Question({"text": texts[number]}, (number, *near), shown))
        return asker.write("label", self.prompt_like, questions)

    def _smoothed(self, grouping: Grouping, vectors_NE: np.ndarray) -> Grouping:
        sizes = [size for size in self.smooth if size < len(vectors_NE)]
        if not sizes:
            return grouping.again(vectors_NE)
        near_NT = neighbours(vectors_NE, max(sizes) - 1)
        best: tuple[float, Grouping] | None = None
        for size in sizes:
            # A neighbourhood of `size` texts has the text itself.
            own = vectors_NE + vectors_NE[near_NT[:, : size - 1]].sum(1)
            found = grouping.again((own / size).astype(np.float32))
            score = silhouette(found.vectors_NE, found.labels_N, grouping.seed)
            if best is None or score > best[0]:
                best = (score, found)
        assert best is not None
        return best[1]
