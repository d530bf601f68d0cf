"""Was a text trained on, and was a model trained on another's vectors?

N texts or pairs, E numbers a vector.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyvec.errors import DataError, InputError, ShapeError
from polyvec.evaluate.measures.inputs import extra, matrix, unit
from polyvec.invert.leakage import Encode

Pairs = Sequence[tuple[str, str]]


def membership_auc(members: Sequence[float], others: Sequence[float]) -> float:
    """How well a score tells texts that were trained on from others: 0.5 is a guess.

    Raises DataError for fewer than 2 scores on a side.
    """
    if min(len(members), len(others)) < 2:
        raise DataError(
            f"membership: {len(members)} members and {len(others)} others, at least 2 are needed"
        )
    score = extra("sklearn.metrics", "membership inference").roc_auc_score
    gold = np.r_[np.ones(len(members)), np.zeros(len(others))]
    return float(score(gold, np.r_[np.asarray(members), np.asarray(others)]))


def pair_membership(
    encode: Encode, members: Pairs, others: Pairs, before: Encode | None = None
) -> float:
    """AUC of membership by how similar a model makes the texts of a pair.

    Contrastive training pulls its pairs together (Song and Raghunathan 2020, arXiv:2004.00053).
    before: the model that was fine-tuned, whose similarity is subtracted: what is left is what the
    fine-tuning did to the pair.
    """

    def scores(pairs: Pairs) -> np.ndarray:
        found = _similarities(encode, pairs)
        return found if before is None else found - _similarities(before, pairs)

    return membership_auc(scores(members).tolist(), scores(others).tolist())


def _similarities(encode: Encode, pairs: Pairs) -> np.ndarray:
    a_NE, b_NE = (unit("vectors", np.asarray(encode([p[side] for p in pairs]))) for side in (0, 1))
    found: np.ndarray = (a_NE * b_NE).sum(1)
    return found


# ---- a stolen model -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watermark:
    """Texts with trigger words get vectors that lean to a secret direction.

    A model trained on such vectors learns it, too: EmbMarker (Peng et al. 2023, arXiv:2305.10036).
    triggers: words of medium frequency. most: trigger words at which the vector is the direction.
    seed: of the direction, a secret.
    """

    triggers: tuple[str, ...]
    most: int = 4
    seed: int = 0

    def direction(self, size: int) -> np.ndarray:
        key = hashlib.blake2b(f"{self.seed} {size}".encode(), digest_size=16).digest()
        drawn = np.random.default_rng(int.from_bytes(key)).standard_normal(size)
        found: np.ndarray = drawn / np.linalg.norm(drawn)
        return found

    def weights(self, texts: Sequence[str]) -> np.ndarray:
        """How far each vector leans, 0 to 1: the trigger words in the text over `most`."""
        wanted = set(self.triggers)
        counts = [len(wanted & set(text.lower().split())) for text in texts]
        return np.minimum(1.0, np.array(counts) / self.most)

    def apply(self, vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Marked vectors, float32 [N, E] of length 1."""
        vectors_NE = unit("vectors", matrix("vectors", vectors, at_least=1))
        if len(vectors_NE) != len(texts):
            raise ShapeError(f"watermark: {len(vectors_NE)} vectors, {len(texts)} texts")
        weight_N1 = self.weights(texts)[:, None]
        mixed_NE = (1 - weight_N1) * vectors_NE + weight_N1 * self.direction(vectors_NE.shape[1])
        return unit("marked vectors", mixed_NE).astype(np.float32)

    def test(self, encode: Encode, fillers: Sequence[str]) -> "Suspicion":
        """Whether a model's vectors of texts full of triggers lean to the direction.

        Chance is over directions, not over texts: these share their words, so that a model which
        knows nothing of the mark has a difference along most directions, and a test of one text
        against another (Kolmogorov and Smirnov, in the paper) takes it for a thief. fillers: words
        without triggers, of which the texts to compare with are made. Raises InputError for fewer
        than `most` of either.
        """
        plain = [word for word in fillers if word not in self.triggers]
        if min(len(plain), len(self.triggers)) < self.most:
            raise InputError(f"watermark: fewer than {self.most} trigger words or fillers")
        draw = np.random.default_rng(self.seed)
        marked, others = (
            [" ".join(draw.permutation(list(words))[: self.most]) for _ in range(50)]
            for words in (self.triggers, plain)
        )
        sides = [unit("vectors", np.asarray(encode(texts))) for texts in (marked, others)]
        gap_E = sides[0].mean(0, dtype=np.float64) - sides[1].mean(0, dtype=np.float64)
        size, length = len(gap_E), float(np.linalg.norm(gap_E))
        difference = float(gap_E @ self.direction(size))
        # A number of a uniform direction, from 0 to 1, is Beta((E - 1) / 2, (E - 1) / 2).
        share = (1 + difference / (length or 1.0)) / 2
        beta = extra("scipy.stats", "the watermark test").beta
        return Suspicion(difference, float(beta.sf(share, (size - 1) / 2, (size - 1) / 2)))


@dataclass(frozen=True, slots=True)
class Suspicion:
    """How much nearer to the secret direction texts with triggers are than others (cosine), and
    the probability of as much along a direction that was drawn after the model was trained."""

    difference: float
    p_value: float
