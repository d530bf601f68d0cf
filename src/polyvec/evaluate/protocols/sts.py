"""Semantic textual similarity: do the model's similarities correlate with human scores?"""

from collections.abc import Sequence

import numpy as np

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import StsSet
from polyvec.errors import DataError
from polyvec.evaluate.measures.correlation import correlations
from polyvec.evaluate.outcome import Encoder, Item, Outcome
from polyvec.evaluate.protocols.vectors import encode_pairs, equal_lengths, pair_similarities
from polyvec.evaluate.significance import spearman

SIMILARITY_FUNCTIONS = ("cosine", "manhattan", "euclidean")


def sts(encoder: Encoder, data: StsSet) -> Outcome:
    """Spearman's and Pearson's correlation of similarity and gold score.

    By the model's own similarity ("spearman", the main score) and, as in MTEB
    (arXiv:2210.07316), by cosine, Manhattan and Euclidean distance ("cosine_spearman").
    """
    equal_lengths(data.name, pairs=data.sentences1, sentences2=data.sentences2, scores=data.scores)
    a_NE, b_NE = encode_pairs(encoder, data.sentences1, data.sentences2, data.name)
    similarities = pair_similarities(encoder, a_NE, b_NE, data.name)
    own = similarities["similarity"]
    scores = correlated(data.name, own, data.scores)
    for name in SIMILARITY_FUNCTIONS:
        if np.ptp(similarities[name]) > 0:  # else there is no correlation to report
            each = correlated(data.name, similarities[name], data.scores)
            scores |= {f"{name}_{measure}": value for measure, value in each.items()}
    return pairs_outcome(data.kind, scores, own, data.scores, (data.sentences1, data.sentences2))


def pairs_outcome(
    kind: str,
    scores: dict[str, float],
    predicted_N: np.ndarray,
    gold: Sequence[float],
    texts: Sequence[Sequence[str]],
) -> Outcome:
    """The outcome of pairs with gold scores; `texts` are columns: first, second, condition."""
    rows = enumerate(zip(zip(*texts, strict=True), predicted_N.tolist(), gold, strict=True))
    items = tuple(Item(str(row), words, value, score) for row, (words, value, score) in rows)
    paired = np.stack([predicted_N, np.asarray(gold, float)], axis=1)
    return Outcome(
        kind, KINDS[kind].main_measure, scores, items, paired, spearman, {"pairs": predicted_N}
    )


def correlated(task: str, predicted: np.ndarray, gold: Sequence[float]) -> dict[str, float]:
    """Spearman's and Pearson's correlation; DataError naming the task if it is undefined."""
    try:
        return correlations(predicted.tolist(), gold)
    except DataError as error:
        raise DataError(f"{task}: {error}") from None
