"""What a classifier reads from vectors: attributes, words, and whether a text was trained on.

N texts, E numbers a vector, V words.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyvec.embed.inputs.content_words import content_words
from polyvec.errors import DataError, InputError, ShapeError
from polyvec.evaluate.measures.inputs import extra, matrix
from polyvec.settings import check_seed


@dataclass(frozen=True, slots=True)
class Attribute:
    """Of a held-out part: AUC of the probe on vectors and of a bag of words on the texts, which
    bounds what could be known (both 0.5 for a guess), the probe's accuracy, and the accuracy of
    always saying the most frequent class."""

    auc: float
    bag_of_words_auc: float
    accuracy: float
    majority: float


def attribute(
    vectors_NE: np.ndarray, texts: Sequence[str], labels: Sequence[Hashable], *, seed: int = 0
) -> Attribute:
    """How well a linear probe reads an attribute of the texts from their vectors.

    Trained on half of the texts, measured on the other (Song and Raghunathan 2020,
    arXiv:2004.00053). Of several classes the mean AUC of one against the rest. Raises DataError
    for fewer than 2 classes or 4 texts of a class.
    """
    check_seed(seed)
    if not len(vectors_NE) == len(texts) == len(labels):
        raise ShapeError(
            f"attribute: {len(vectors_NE)} vectors, {len(texts)} texts, {len(labels)} labels"
        )
    counts = class_counts(labels)
    vectors_NE = matrix("vectors", vectors_NE)
    names = sorted(counts, key=str)
    gold_N = np.array([names.index(each) for each in labels])
    split = extra("sklearn.model_selection", "attribute probes").train_test_split
    train, test = split(np.arange(len(texts)), test_size=0.5, random_state=seed, stratify=gold_N)
    make = extra("sklearn.feature_extraction.text", "attribute probes").TfidfVectorizer
    words, known = make(), [texts[row] for row in train]
    try:
        bags = words.fit_transform(known)
    except ValueError:  # no word of two letters, such as signs alone
        words = make(token_pattern=r"\S+")
        bags = words.fit_transform(known)
    on_vectors = _classifier().fit(vectors_NE[train], gold_N[train])
    on_words = _classifier().fit(bags, gold_N[train])
    predicted = on_vectors.predict(vectors_NE[test])
    return Attribute(
        auc=_auc(on_vectors.predict_proba(vectors_NE[test]), gold_N[test]),
        bag_of_words_auc=_auc(
            on_words.predict_proba(words.transform([texts[row] for row in test])), gold_N[test]
        ),
        accuracy=float((predicted == gold_N[test]).mean()),
        majority=float(np.bincount(gold_N[test]).max() / len(test)),
    )


def class_counts(labels: Sequence[Hashable]) -> Counter[Hashable]:
    """How many texts each class has; DataError for too few of either to probe for."""
    counts = Counter(labels)
    few, least = counts.most_common()[-1] if counts else ("", 0)
    if len(counts) < 2 or least < 4:
        raise DataError(
            f"attribute: {len(counts)} classes, the smallest ({str(few)[:40]!r}) of {least} texts; "
            "at least 2 classes of at least 4 texts are needed"
        )
    return counts


def _classifier() -> Any:
    linear = extra("sklearn.linear_model", "attribute probes")
    return linear.LogisticRegression(C=10.0, max_iter=2000)


def _auc(shares_NC: np.ndarray, gold_N: np.ndarray) -> float:
    score = extra("sklearn.metrics", "attribute probes").roc_auc_score
    if shares_NC.shape[1] == 2:
        return float(score(gold_N, shares_NC[:, 1]))
    return float(score(gold_N, shares_NC, multi_class="ovr"))


class KeywordAttack:
    """The words of a text from its vector, without order: one linear classifier a word.

    The multi-label baseline of GEIA (arXiv:2305.03010) and the word-set inversion of Song and
    Raghunathan 2020. Words are content words of at least `min_count` known texts.
    """

    def __init__(
        self,
        *,
        min_count: int = 5,
        max_words: int = 5000,
        steps: int = 400,
        learning_rate: float = 0.05,
        seed: int = 0,
    ) -> None:
        check_seed(seed)
        self.min_count, self.max_words = min_count, max_words
        self.steps, self.learning_rate, self.seed = steps, learning_rate, seed
        self.words: list[str] = []
        self.size = 0

    def fit(self, vectors: np.ndarray, texts: Sequence[str]) -> "KeywordAttack":
        """Train on texts whose vectors the attacker has; DataError if no word is frequent enough.

        All classifiers at once: a linear layer, cross-entropy, Adam over the whole set.
        """
        import torch
        from torch.nn import functional as F

        vectors_NE = matrix("vectors", vectors)
        if len(vectors_NE) != len(texts):
            raise ShapeError(f"keyword attack: {len(vectors_NE)} vectors, {len(texts)} texts")
        self.words, table_NV = word_table(texts, min_count=self.min_count, max_words=self.max_words)
        there_NV = torch.from_numpy(table_NV)
        self.size = vectors_NE.shape[1]
        self.mean_E = vectors_NE.mean(0)
        self.scale = float(vectors_NE.std()) or 1.0
        inputs_NE = torch.from_numpy(self._scaled(vectors_NE))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            layer = torch.nn.Linear(self.size, len(self.words))
        share_V = there_NV.mean(0).clamp(1e-5, 1 - 1e-5)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.logit(share_V))  # before it has seen a vector: how frequent
        optimizer = torch.optim.AdamW(layer.parameters(), self.learning_rate, weight_decay=1e-3)
        draw = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            rows = torch.randint(len(texts), (min(512, len(texts)),), generator=draw)
            loss = F.binary_cross_entropy_with_logits(layer(inputs_NE[rows]), there_NV[rows])
            optimizer.zero_grad()
            (loss * len(self.words)).backward()
            optimizer.step()
        self.weight_VE = layer.weight.detach().numpy()
        self.bias_V = layer.bias.detach().numpy()
        return self

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Log-odds of each word, [N, V]."""
        vectors_NE = matrix("vectors", vectors, at_least=1)
        if not self.size:
            raise InputError("keyword attack: not fitted yet; call fit first")
        if vectors_NE.shape[1] != self.size:
            raise ShapeError(
                f"the keyword attack was fitted on vectors of {self.size} dimensions, got "
                f"{vectors_NE.shape[1]}"
            )
        found: np.ndarray = self._scaled(vectors_NE) @ self.weight_VE.T + self.bias_V
        return found

    def guess(self, vectors: np.ndarray, k: int = 10) -> list[list[str]]:
        """The k most likely words of each text, best first."""
        order_NK = np.argsort(-self.scores(vectors), axis=1, kind="stable")[:, :k]
        return [[self.words[at] for at in row] for row in order_NK]

    def _scaled(self, vectors_NE: np.ndarray) -> np.ndarray:
        return ((vectors_NE - self.mean_E) / self.scale).astype(np.float32)


def word_table(
    texts: Sequence[str], *, min_count: int, max_words: int
) -> tuple[list[str], np.ndarray]:
    """Content words of at least `min_count` texts, most frequent first, and which text has which,
    float32 [N, V]; DataError if there is none."""
    sets = [set(content_words(text)) for text in texts]
    counts = Counter(word for each in sets for word in sorted(each))
    found = [word for word, count in counts.most_common(max_words) if count >= min_count]
    if not found:
        raise DataError(f"no content word stands in {min_count} of the {len(texts)} texts")
    place = {word: at for at, word in enumerate(found)}
    there_NV = np.zeros((len(texts), len(found)), np.float32)
    for row, each in enumerate(sets):
        there_NV[row, [place[word] for word in each if word in place]] = 1
    return found, there_NV


def word_overlap(guesses: Sequence[Sequence[str]], texts: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1 of guessed content words, means over texts that have some."""
    found = []
    for words, text in zip(guesses, texts, strict=True):
        gold, given = set(content_words(text)), set(words)
        if gold:
            hits = len(gold & given)
            precision, recall = hits / max(1, len(given)), hits / len(gold)
            f = 2 * precision * recall / (precision + recall) if hits else 0.0
            found.append((precision, recall, f))
    if not found:
        raise DataError("no text has content words to guess")
    means = np.mean(found, axis=0)
    return dict(zip(("precision", "recall", "f1"), map(float, means), strict=True))
