"""Which candidates are refused, and which of the rest are taken.

K candidates of a query, best first; everything here is about one query.
"""

from collections import Counter

import numpy as np

from polyvec.train.mining.settings import MiningSettings


def refused(
    scores_K: np.ndarray, positive: float, settings: MiningSettings, skipped: Counter[str]
) -> np.ndarray:
    """Scores [K] with -inf for those that a limit refuses, which `skipped` counts by its name.

    `positive`: the lowest score of the query's positives: with several, a document that scores
    like any of them may be one.
    """
    scores_K = scores_K.copy()
    # float32 throughout, and in this form: sentence-transformers' own, to the last bit.
    positive32 = np.float32(positive)
    limits = {
        "absolute_margin": lambda s, x: s + np.float32(x) > positive32,
        # |s|, so that a margin below a negative score is lower, too (sentence-transformers #3819).
        "relative_margin": lambda s, x: s > positive32 - abs(positive32) * np.float32(x),
        "max_score": lambda s, x: s > np.float32(x),
        "min_score": lambda s, x: s < np.float32(x),
    }
    for name, is_refused in limits.items():
        limit = getattr(settings, name)
        if limit is None:
            continue
        wrong_K = np.isfinite(scores_K) & is_refused(scores_K, limit)
        skipped[name] += int(wrong_K.sum())
        scores_K[wrong_K] = -np.inf
    return scores_K


def taken(
    scores_K: np.ndarray,
    positive: float,
    settings: MiningSettings,
    width: int,
    draw: np.random.Generator,
) -> np.ndarray:
    """Places of the negatives among the candidates, the best first; refused ones have -inf.

    The window of ranks is that of what is left: range_min skips the best that no limit refuses.
    """
    order = np.argsort(-scores_K, kind="stable")
    order = order[np.isfinite(scores_K[order])][settings.range_min : width]
    if settings.sampling_strategy == "top" or len(order) <= settings.num_negatives:
        return order[: settings.num_negatives]
    if settings.sampling_strategy == "random":
        chosen = draw.choice(len(order), settings.num_negatives, replace=False)
    else:
        assert settings.simans_a is not None
        distance = scores_K[order].astype(np.float64) - positive - settings.simans_b
        # The highest sums of a log-probability and Gumbel noise are draws without replacement.
        keys = -settings.simans_a * distance**2 + draw.gumbel(size=len(order))
        chosen = np.argsort(-keys, kind="stable")[: settings.num_negatives]
    return order[np.sort(chosen)]
