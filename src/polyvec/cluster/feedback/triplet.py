"""Which of two texts is in an uncertain text's group? The answers train the embedder.

ClusterLLM (Zhang et al. 2023, arXiv:2305.14871); with select = "boundary" and neighbours as
candidates LOOP (An et al. 2024, arXiv:2312.10897).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from polyvec.cluster.asking import Asker, Question
from polyvec.cluster.feedback import FEEDBACK, Feedback
from polyvec.cluster.grouping import Grouping, Tools
from polyvec.cluster.ranges import COUNT, SHARE, Ranges
from polyvec.cluster.uncertainty import RANKINGS, centroids, nearest_groups, neighbours
from polyvec.errors import InputError

# ClusterLLM's, perspective/2_finetune/scripts: temperature 0.01, rate 2e-6, batches of 4, 15
# epochs.
STAGE: Mapping[str, Any] = {
    "losses": ({"kind": "info_nce", "temperature": 0.01},),
    "learning_rate": 2e-6,
    "batch_size": 4,
    "num_train_epochs": 15,
}
MOST_DRAWS = 50  # for a triplet before it is given up


@FEEDBACK.register("triplet")
@dataclass(frozen=True, slots=True)
class Triplet(Feedback):
    """num_queries: triplets, drawn from the `share` of texts that `select` finds most uncertain.
    candidates: "groups" draws the two texts from two of the nearest groups, which are `close` of
    all, at least two; "neighbours" among the nearest texts, from the text's own group and from the
    nearest other, as LOOP's code does. self_pairs: so many texts that nobody asked about are
    trained to be near one of their neighbours; rows then have no negatives, as in LOOP.
    stage: of the training; see the stage `scl`.
    """

    RANGES: ClassVar[Ranges] = {
        "num_queries": COUNT,
        "share": SHARE,
        "close": SHARE,
        "num_neighbours": COUNT,
        "self_pairs": (0, math.inf),
    }

    num_queries: int = 1024
    select: str = "entropy"
    share: float = 0.2
    candidates: Literal["groups", "neighbours"] = "groups"
    close: float = 0.02
    num_neighbours: int = 50
    self_pairs: int = 0
    prompt: str = "triplet"
    stage: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, grouping: Grouping, asker: Asker, tools: Tools) -> tuple[Grouping, Tools]:
        if tools.tune is None:
            raise InputError(
                "feedback 'triplet' trains the embedder on the answers; give an embedder of "
                "polyvec, not vectors or an encoder that cannot be trained"
            )
        texts = [asker.shown(each) for each in grouping.texts]
        triplets = self._triplets(grouping)
        questions = [
            Question({"query": texts[q], "first": texts[a], "second": texts[b]}, (q, a, b))
            for q, a, b in triplets
        ]
        calls = asker.choose("triplet", self.prompt, questions)
        rows = []
        for (query, *both), call in zip(triplets, calls, strict=True):
            if call.value is not None:
                chosen, other = both[call.value], both[1 - call.value]
                than = "" if self.self_pairs else f" than to {other}"
                call.effect = f"trained: text {query} nearer to {chosen}{than}"
                rows.append(self._row(grouping, query, chosen, other))
        rows += self._neighbour_rows(grouping, {query for query, *_ in triplets})
        if not rows:
            return grouping, tools
        tuned = tools.tune(rows, {**STAGE, "seed": grouping.seed, **self.stage})
        return grouping.again(tuned.embedded(grouping.texts, "triplet")), tuned

    def _row(self, grouping: Grouping, query: int, near: int, far: int) -> dict[str, Any]:
        texts = grouping.texts
        return {"query": texts[query], "pos": [texts[near]], "neg": [texts[far]]}

    def _triplets(self, grouping: Grouping) -> list[tuple[int, int, int]]:
        draw = grouping.draw()
        order = RANKINGS.find(self.select)(grouping.vectors_NE, grouping.labels_N, draw)
        anchors = order[: max(1, round(self.share * len(order)))].tolist()
        groups_of = self._candidates(grouping)
        found: dict[tuple[int, int, int], None] = {}
        for _ in range(MOST_DRAWS):  # passes over the anchors, until there are enough
            for anchor in anchors:
                if len(found) == self.num_queries:
                    return list(found)
                groups = groups_of(anchor)
                if len(groups) < 2:
                    continue
                first, second = draw.permutation(len(groups))[:2]
                a, b = (int(draw.choice(groups[each])) for each in (first, second))
                if anchor not in (a, b):
                    found.setdefault((anchor, a, b))
        return list(found)

    def _candidates(self, grouping: Grouping) -> Any:
        """A function from a text to the members of the groups that are drawn from."""
        labels_N = grouping.labels_N
        if self.candidates == "groups":
            members = [np.flatnonzero(labels_N == group) for group in range(grouping.num_groups)]
            centers = centroids(grouping.vectors_NE, labels_N)
            num = max(2, round(self.close * len(centers)))
            near_NM, _ = nearest_groups(grouping.vectors_NE, centers, num)
            return lambda text: [members[group] for group in near_NM[text]]
        near_NT = neighbours(grouping.vectors_NE, self.num_neighbours)

        def two(text: int) -> list[np.ndarray]:
            near = near_NT[text][labels_N[near_NT[text]] >= 0]
            names = list(dict.fromkeys(labels_N[near].tolist()))  # the nearest group first
            names.sort(key=lambda name: name != labels_N[text])
            return [near[labels_N[near] == name] for name in names[:2]]

        return two

    def _neighbour_rows(self, grouping: Grouping, asked: set[int]) -> list[dict[str, Any]]:
        if not self.self_pairs:
            return []
        draw = grouping.draw()
        near_NT = neighbours(grouping.vectors_NE, self.num_neighbours)
        order = draw.permutation(len(grouping.texts)).tolist()
        chosen = [text for text in order if text not in asked][: self.self_pairs]
        return [
            {
                "query": grouping.texts[text],
                "pos": [grouping.texts[int(draw.choice(near_NT[text]))]],
                "neg": [],
            }
            for text in chosen
        ]
