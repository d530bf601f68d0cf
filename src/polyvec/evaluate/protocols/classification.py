"""Classification: does a linear classifier predict the labels from the vectors?

N texts, E vector dimensions, X experiments, C classes.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import ClassificationSet
from polyvec.errors import DataError
from polyvec.evaluate.measures.inputs import extra
from polyvec.evaluate.outcome import Encoder, Item, Outcome
from polyvec.evaluate.protocols.vectors import encode, equal_lengths, mean


def classification(
    encoder: Encoder,
    data: ClassificationSet,
    *,
    seed: int = 42,
    num_experiments: int = 10,
    max_iter: int = 100,
) -> Outcome:
    """Accuracy of logistic regression on a few examples of each label, mean of ten experiments.

    As in MTEB, each experiment draws `samples_per_label` training texts of every label. F1,
    precision and recall are macro averages, "f1_weighted" and so on are weighted by support. With
    two labels "ap" is the average precision of the predicted labels; the positive label is "1",
    else the last. An item's value is the fraction of experiments that classify it correctly.
    """
    equal_lengths(f"{data.name}: train", texts=data.train_texts, labels=data.train_labels)
    equal_lengths(data.name, texts=data.texts, labels=data.labels)
    names, (train_N, gold_N) = numbered(data.train_labels, data.labels)
    if len(set(data.train_labels)) < 2:
        raise DataError(
            f"{data.name}: train: only one label, {data.train_labels[0]!r}; expected 2 or more"
        )
    if not set(data.train_labels) & set(data.labels):
        raise DataError(
            f"{data.name}: no label of the test texts ({data.labels[0]!r}, ...) occurs in training "
            f"({data.train_labels[0]!r}, ...), so every score would be 0; write labels alike"
        )
    draws = list(drawn(train_N, data.samples_per_label, num_experiments, seed))
    union = np.unique(np.concatenate(draws))
    chosen = [data.train_texts[row] for row in union]
    train_NE = encode(encoder, chosen, data.name, name=lambda i: f"train text {union[i]}")
    test_NE = encode(encoder, data.texts, data.name)
    predicted_XN = np.stack(
        [
            _predicted(
                train_NE[np.searchsorted(union, rows)], train_N[rows], test_NE, seed, max_iter
            )
            for rows in draws
        ]
    )
    each = [_scores(predicted_N, gold_N, names) for predicted_N in predicted_XN]
    scores = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    right_N = (predicted_XN == gold_N).mean(axis=0)
    rows = enumerate(zip(data.texts, right_N.tolist(), data.labels, strict=True))
    items = tuple(
        Item(str(row), (text,), share, label, _predictions(predicted_XN[:, row], names, label))
        for row, (text, share, label) in rows
    )
    kind = KINDS[data.kind]
    return Outcome(kind.name, kind.main_measure, scores, items, right_N[:, None], mean)


def numbered(*columns: Sequence[str]) -> tuple[list[str], list[np.ndarray]]:
    """The labels in order, whole numbers by value, and the columns as indices of labels."""
    found = {label for column in columns for label in column}
    whole = all(re.fullmatch(r"-?\d+", label) for label in found)
    names = sorted(found, key=int) if whole else sorted(found)
    code = {label: place for place, label in enumerate(names)}
    return names, [np.array([code[label] for label in column]) for column in columns]


def drawn(labels_N: np.ndarray, per_label: int, num: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of each experiment's training texts, in the order in which they were drawn.

    MTEB shuffles one list repeatedly, from the same seed each time: the same permutation is
    applied once in the first experiment, ten times in the tenth.
    """
    permutation_N = np.arange(len(labels_N))
    np.random.RandomState(seed).shuffle(permutation_N)
    rows_N = np.arange(len(labels_N))
    for _ in range(num):
        rows_N = rows_N[permutation_N]
        by_label = np.argsort(labels_N[rows_N], kind="stable")
        counts_C = np.bincount(labels_N)
        starts_C = counts_C.cumsum() - counts_C
        place_N = np.arange(len(rows_N)) - np.repeat(starts_C, counts_C)
        yield rows_N[np.sort(by_label[place_N < per_label])]


def _predicted(
    train_NE: np.ndarray, labels_N: np.ndarray, test_NE: np.ndarray, seed: int, max_iter: int
) -> np.ndarray:
    model = extra("sklearn.linear_model", "classification").LogisticRegression
    with warnings.catch_warnings():
        # MTEB stops after 100 steps, converged or not.
        warnings.simplefilter("ignore", extra("sklearn.exceptions", "").ConvergenceWarning)
        fitted = model(max_iter=max_iter, random_state=seed).fit(train_NE, labels_N)
    predicted_N: np.ndarray = fitted.predict(test_NE)
    return predicted_N


def _predictions(
    predicted_X: np.ndarray, names: Sequence[str], gold: str
) -> tuple[tuple[str, str, float, int], ...]:
    """The labels that experiments predicted for a text, most frequent first, with their share."""
    counts = Counter(predicted_X.tolist()).most_common()
    return tuple(
        (names[label], "", count / len(predicted_X), int(names[label] == gold))
        for label, count in counts
    )


def _scores(predicted_N: np.ndarray, gold_N: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Scores of one experiment; macro averages include labels that are only predicted."""
    sklearn = extra("sklearn.metrics", "classification")
    values = sklearn.precision_recall_fscore_support(gold_N, predicted_N, zero_division=0)
    found = {"accuracy": float((predicted_N == gold_N).mean())}
    for name, each_C in zip(("precision", "recall", "f1"), values[:3], strict=True):
        found[name] = float(each_C.mean())
        found[f"{name}_weighted"] = float(np.average(each_C, weights=values[3]))
    labels = np.unique(gold_N)
    if len(labels) == 2:
        ones = [label for label in labels if names[label] == "1"]
        positive = ones[0] if ones else labels[-1]
        is_positive, predicted_positive = (
            gold_N == positive,
            (predicted_N == positive).astype(float),
        )
        found["ap"] = float(sklearn.average_precision_score(is_positive, predicted_positive))
        found["ap_weighted"] = found["ap"]  # one curve for two labels: equal in scikit-learn, too
    return found
