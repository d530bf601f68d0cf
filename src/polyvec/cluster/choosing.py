"""How many groups? By silhouette, by stability, and by what a language model says of pairs.

N texts, E dimensions, K groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from polyvec.cluster.asking import Asker, Question
from polyvec.errors import InputError
from polyvec.evaluate.measures.clustering import ari
from polyvec.evaluate.measures.inputs import extra

Labelled = Callable[[np.ndarray, int, int], np.ndarray]  # vectors, k and a seed to labels
SAMPLE = 2000  # texts whose distances to all others of them are computed
MOST_GROUPS = 200
NUM_CANDIDATES = 14
ROUNDS, SHARE = 3, 0.8  # of stability: pairs of subsamples, and their share of the texts
TREE_UP_TO = 5000  # texts; of more, groups of k-means are merged
BETA = 0.92  # ClusterLLM's, granularity/predict_num_clusters.py
YES = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """The number of groups, and what each way of choosing says: its k, and its score of each."""

    k: int
    by: str
    says: dict[str, int] = field(default_factory=dict)
    scores: dict[str, dict[int, float]] = field(default_factory=dict)


def candidates(num_texts: int, most: int = MOST_GROUPS) -> list[int]:
    """Numbers of groups to try, in equal ratios from 2 to half of the texts, at most 200."""
    high = max(2, min(most, num_texts // 2))
    found = np.geomspace(2, high, NUM_CANDIDATES).round().astype(int)
    return sorted(set(found.tolist()))


def silhouette(vectors_NE: np.ndarray, labels_N: np.ndarray, seed: int = 0) -> float:
    """Mean silhouette, -1 to 1, of at most 2,000 texts that are in a group; -1 of one group.

    Rousseeuw 1987.
    """
    rows = np.flatnonzero(labels_N >= 0)
    if len(rows) > SAMPLE:
        rows = np.random.default_rng(seed).choice(rows, SAMPLE, replace=False)
    num = len(np.unique(labels_N[rows]))
    if not 2 <= num < len(rows):
        return -1.0
    score = extra("sklearn.metrics", "silhouette").silhouette_score
    return float(score(vectors_NE[rows], labels_N[rows]))


def stability(vectors_NE: np.ndarray, labelled: Labelled, k: int, seed: int) -> float:
    """Adjusted Rand index between groups of two random 80 % of the texts, where both have a text.

    The mean over three pairs (Ben-Hur, Elisseeff and Guyon 2002).
    """
    draw = np.random.default_rng(seed)
    found = []
    for number in range(ROUNDS):
        size = max(k, round(SHARE * len(vectors_NE)))
        first, second = (draw.choice(len(vectors_NE), size, replace=False) for _ in range(2))
        labels = [labelled(vectors_NE[part], k, seed + number) for part in (first, second)]
        _, a, b = np.intersect1d(first, second, assume_unique=True, return_indices=True)
        found.append(ari(labels[0][a], labels[1][b]))
    return float(np.mean(found))


def choose_k(
    vectors_NE: np.ndarray, labelled: Labelled, seed: int, by: str = "silhouette"
) -> Choice:
    """The k with the highest score by "silhouette" or "stability"; of equal ones the smallest."""
    ks = candidates(len(vectors_NE))
    part = vectors_NE
    if len(part) > 2 * SAMPLE:
        part = part[np.random.default_rng(seed).choice(len(part), 2 * SAMPLE, replace=False)]
    scores = {
        "silhouette": {k: silhouette(part, labelled(part, k, seed), seed) for k in ks},
        "stability": {k: stability(part, labelled, k, seed) for k in ks},
    }
    says = {name: max(found, key=lambda k: (found[k], -k)) for name, found in scores.items()}
    return Choice(says[by], by, says, scores)


# ---- a language model's granularity -------------------------------------------------------------


def granularity(
    texts: Sequence[str],
    vectors_NE: np.ndarray,
    asker: Asker,
    seed: int,
    *,
    most: int = MOST_GROUPS,
    rounds: int = 1,
    prompt: str = "same",
) -> Choice:
    """ClusterLLM's walk along the tree of merges (Zhang et al. 2023, arXiv:2305.14871).

    Of the two groups that each merge joins, a pair of texts is asked about; k is where the tree
    agrees best with the answers, by F-beta with the answers as truth.
    """
    tree_NK = _tree(vectors_NE, min(most, len(vectors_NE) - 1), seed)
    steps, pairs = _walk(tree_NK, rounds, seed)
    if not pairs:
        raise InputError(
            f"granularity: {len(texts)} texts are too few to ask how many groups they make; give k"
        )
    questions = [
        Question({"first": asker.shown(texts[a]), "second": asker.shown(texts[b])}, (a, b))
        for a, b in pairs
    ]
    calls = asker.choose("granularity", prompt, questions)
    answered = [number for number, call in enumerate(calls) if call.value is not None]
    for number in answered:
        said = "at most" if calls[number].value == YES else "more than"
        calls[number].effect = f"{said} {steps[number]} groups"
    if not answered:
        raise InputError(
            f"granularity: none of {len(calls)} answers was one of the choices, so nothing says "
            "how many groups there are; choose k by silhouette"
        )
    truth = np.array([calls[number].value == YES for number in answered])
    first, second = np.array([pairs[number] for number in answered]).T
    scores = {}
    for k in range(2, tree_NK.shape[1] + 1):
        labels_N = tree_NK[:, k - 1]
        scores[k] = f_beta(truth, labels_N[first] == labels_N[second])
    best = max(scores, key=lambda k: (scores[k], -k))
    return Choice(best, "granularity", {"granularity": best}, {"granularity": scores})


def f_beta(truth_P: np.ndarray, predicted_P: np.ndarray, beta: float = BETA) -> float:
    """F-beta of predicted pairs, 0 to 1; 0 where nothing is found."""
    hits = float((truth_P & predicted_P).sum())
    if not hits:
        return 0.0
    precision, recall = hits / predicted_P.sum(), hits / truth_P.sum()
    return float((1 + beta**2) * precision * recall / (beta**2 * precision + recall))


def _tree(vectors_NE: np.ndarray, most: int, seed: int) -> np.ndarray:
    """The group of each text when there are 1, 2, ... groups, [N, K], by merges after Ward."""
    hierarchy = extra("scipy.cluster.hierarchy", "clustering")
    own_N = np.arange(len(vectors_NE))
    points = vectors_NE
    if len(points) > TREE_UP_TO:
        model = extra("sklearn.cluster", "clustering").MiniBatchKMeans(
            most, batch_size=4096, n_init=3, random_state=seed
        )
        own_N = model.fit_predict(vectors_NE)
        filled, own_N = np.unique(own_N, return_inverse=True)
        points = model.cluster_centers_[filled]
        most = min(most, len(points) - 1)
    merges = hierarchy.linkage(points, "ward")
    ks = list(range(1, most + 1))
    return np.asarray(hierarchy.cut_tree(merges, n_clusters=ks))[own_N]


def _walk(tree_NK: np.ndarray, rounds: int, seed: int) -> tuple[list[int], list[tuple[int, int]]]:
    """For each merge, the number of groups that it leaves and a text of each group it joins."""
    draw = np.random.default_rng(seed)
    steps, pairs = [], []
    for _ in range(rounds):
        for num in range(2, tree_NK.shape[1]):
            joined, before = tree_NK[:, num - 1], tree_NK[:, num]
            for group in range(num):
                parts = np.unique(before[joined == group])
                if len(parts) == 2:
                    a, b = (int(draw.choice(np.flatnonzero(before == part))) for part in parts)
                    if (a, b) not in pairs:
                        steps.append(num)
                        pairs.append((a, b))
                    break
    return steps, pairs
