"""Bitext mining: is a sentence's translation its nearest neighbour in the other language?

N sentences to translate, M sentences of the other language, E vector dimensions.
"""

import numpy as np

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import BitextMiningSet
from polyvec.errors import DataError
from polyvec.evaluate.measures.classification import f1
from polyvec.evaluate.measures.inputs import extra
from polyvec.evaluate.outcome import Encoder, Item, Outcome
from polyvec.evaluate.protocols.vectors import encode, varied

BLOCK = 100  # sentences whose similarities with all others exist at a time, as in MTEB


def bitext_mining(encoder: Encoder, data: BitextMiningSet) -> Outcome:
    """F1 of the nearest neighbours in the other language, weighted as in MTEB; and accuracy.

    Each pair of `data.gold` is a query for one sentence of the second side; ties go to the first.
    The sentences of the second side are the labels, so a hub, the neighbour of many, has low
    precision: F1 is below accuracy. `paired` is [found, gold], row numbers of sentences.
    """
    _check(data)
    sources, gold_N = (np.array(column) for column in zip(*data.gold, strict=True))
    needed, row_N = np.unique(sources, return_inverse=True)
    texts = [data.sentences1[row] for row in needed]
    a_NE = encode(encoder, texts, data.name, name=lambda i: f"row {needed[i]} of sentences1")
    b_ME = encode(encoder, data.sentences2, data.name, name="row {} of sentences2".format)
    found_N, best_N, gold_score_N, other_N = _neighbours(encoder, a_NE[row_N], b_ME, gold_N)
    varied(data.name, np.stack([best_N, gold_score_N, other_N])[:, np.isfinite(other_N)])
    paired = np.stack([found_N, gold_N], axis=1)
    items = tuple(
        Item(
            str(source),
            (data.sentences1[source], data.sentences2[gold]),
            float(found == gold),
            str(gold),
            ((str(found), data.sentences2[found], score, int(found == gold)),),
        )
        for source, gold, found, score in zip(
            sources.tolist(), gold_N.tolist(), found_N.tolist(), best_N.tolist(), strict=True
        )
    )
    groups = {"gold": gold_score_N, "other": other_N[np.isfinite(other_N)]}
    kind = KINDS[data.kind]
    scores = _scores(found_N, gold_N)
    return Outcome(kind.name, kind.main_measure, scores, items, paired, _f1, groups)


def _check(data: BitextMiningSet) -> None:
    if not data.gold:
        raise DataError(f"{data.name}: no gold pairs")
    sides = data.sentences1, data.sentences2
    for pair in data.gold:
        for side, (row, sentences) in enumerate(zip(pair, sides, strict=True), start=1):
            if not 0 <= row < len(sentences):
                raise DataError(
                    f"{data.name}: gold pair {pair}: row {row} is out of range for the "
                    f"{len(sentences)} sentences{side}"
                )


def _neighbours(
    encoder: Encoder, a_NE: np.ndarray, b_ME: np.ndarray, gold_N: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Row of the nearest, its score, the gold one's, and the best other's (-inf if none), [N]."""
    blocks = []
    for start in range(0, len(a_NE), BLOCK):
        scores = np.array(encoder.similarity(a_NE[start : start + BLOCK], b_ME), np.float32)
        row, gold = np.arange(len(scores)), gold_N[start : start + BLOCK]
        found = scores.argmax(axis=1)
        best, gold_score = scores[row, found], scores[row, gold]
        scores[row, gold] = -np.inf
        blocks.append((found, best, gold_score, scores.max(axis=1)))
    return tuple(np.concatenate(column) for column in zip(*blocks, strict=True))


def _scores(found_N: np.ndarray, gold_N: np.ndarray) -> dict[str, float]:
    measure = extra("sklearn.metrics", "bitext mining").precision_recall_fscore_support
    precision, recall, f1_, _ = measure(gold_N, found_N, average="weighted", zero_division=0)
    accuracy = float((found_N == gold_N).mean())
    return {
        "f1": float(f1_),
        "precision": float(precision),
        "recall": float(recall),
        "accuracy": accuracy,
    }


def _f1(items: np.ndarray) -> float:
    return f1(items[:, 0], items[:, 1], average="weighted")
