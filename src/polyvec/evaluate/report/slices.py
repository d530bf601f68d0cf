"""Where a score comes from: scores by length, the worst items, the worst labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyvec.evaluate.outcome import Item, Outcome, Statistic
from polyvec.evaluate.report.intervals import Interval, bootstrap, interval, mean, score
from polyvec.evaluate.significance import spearman

NUM_SLICES = 4
MIN_SLICED = 8  # two items per slice
NUM_WORST = 10
CHARACTERS_A_WORD = 15  # a longer mean suggests a script without spaces between words


@dataclass(frozen=True, slots=True)
class Slice:
    """The score of the items that have `low` to `high` words (or characters)."""

    low: int
    high: int
    num_items: int
    score: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Worst:
    """An item with the percentile ranks of its similarity and its gold score.

    Both are None if gold is not a score.
    """

    item: Item
    similarity_place: float | None = None
    gold_place: float | None = None


@dataclass(frozen=True, slots=True)
class LabelScore:
    """The mean score of the texts with one label, and the label most often predicted instead."""

    label: str
    num_items: int
    score: float
    taken_for: str = ""


def is_agreement(items: Sequence[Item]) -> bool:
    """Whether the score correlates the items' values with gold scores."""
    return bool(items) and all(
        isinstance(item.gold, int | float) and not item.found for item in items
    )


def is_labelled(items: Sequence[Item]) -> bool:
    """Whether the items have labels, with several items per label."""
    labels = {item.gold for item in items}
    return all(isinstance(label, str) for label in labels) and 1 < len(labels) <= len(items) / 2


def lengths(items: Sequence[Item]) -> tuple[np.ndarray, str]:
    """Each item's length, and its unit: "words", or "characters" in scripts without spaces.

    For a query, its own length without the documents; for a pair, the length of both texts.
    """
    alone = any(item.found for item in items)
    texts = [item.texts[:1] if alone else item.texts for item in items]
    characters = np.array([sum(map(len, own)) for own in texts])
    words = np.array([sum(len(text.split()) for text in own) for own in texts])
    if characters.sum() > CHARACTERS_A_WORD * max(1, words.sum()):
        return characters, "characters"
    return words, "words"


def fits(outcome: Outcome) -> bool:
    """Whether the main score is computed from one row per item."""
    rows = outcome.paired
    return rows is not None and outcome.statistic is not None and len(rows) == len(outcome.items)


def scored(outcome: Outcome) -> tuple[np.ndarray, Statistic]:
    """One row per item, and the statistic that computes a score from rows.

    The outcome's own if it has one row per item; else Spearman or the mean of the items' values.
    """
    items = outcome.items
    if outcome.paired is not None and outcome.statistic and fits(outcome):
        return np.asarray(outcome.paired, float).reshape(len(items), -1), outcome.statistic
    if is_agreement(items):
        rows = [(item.value, float(item.gold or 0)) for item in items]
        return np.array(rows, float).reshape(-1, 2), spearman
    return np.array([[item.value] for item in items], float).reshape(-1, 1), mean


def length_slices(outcome: Outcome) -> tuple[tuple[Slice, ...], str]:
    """Scores by quartile of length, shortest first, and the unit of length.

    A length equal to a quartile belongs to the lower slice. Empty if there are fewer than 8 items,
    or if the lengths do not differ enough for two slices.
    """
    if len(outcome.items) < MIN_SLICED:
        return (), "words"
    length, unit = lengths(outcome.items)
    rows, statistic = scored(outcome)
    cuts = np.quantile(length, np.arange(1, NUM_SLICES) / NUM_SLICES)
    place = np.searchsorted(cuts, length)
    slices = []
    for number in np.unique(place):
        chosen = place == number
        slices.append(
            Slice(
                int(length[chosen].min()),
                int(length[chosen].max()),
                int(chosen.sum()),
                score(statistic, rows[chosen]),
                interval(bootstrap(rows[chosen], statistic, num_samples=200)),
            )
        )
    return (tuple(slices) if len(slices) > 1 else ()), unit


def worst(outcome: Outcome, num: int = NUM_WORST) -> tuple[Worst, ...]:
    """The items that lower the score most, worst first.

    With gold scores: those whose ranks of similarity and gold differ most. Otherwise those with
    the lowest values; among equal values, those whose irrelevant documents score highest. Items
    with the value NaN are excluded.
    """
    items = outcome.items
    if is_agreement(items) and len(items) > 1:
        value, gold = _places(items)
        order = np.argsort(-np.abs(value - gold), kind="stable")[:num]
        return tuple(
            Worst(items[i], float(value[i]), float(gold[i])) for i in order if value[i] != gold[i]
        )
    below = [item for item in items if item.value < 1]
    below.sort(key=lambda item: (item.value, -_surest(item)))
    return tuple(Worst(item) for item in below[:num])


def worst_labels(outcome: Outcome, num: int = NUM_WORST) -> tuple[LabelScore, ...]:
    """The labels whose texts score lowest on average; none where there are no labels."""
    if not is_labelled(outcome.items):
        return ()
    by_label: dict[str, list[Item]] = {}
    for item in outcome.items:
        by_label.setdefault(str(item.gold), []).append(item)
    scores = [
        LabelScore(label, len(own), float(np.mean([item.value for item in own])), _taken_for(own))
        for label, own in by_label.items()
    ]
    below = [row for row in scores if row.score < 1]
    return tuple(sorted(below, key=lambda row: (row.score, row.label))[:num])


def wrong_label(item: Item) -> str:
    """The first predicted label that is not the gold label; "" if there is none."""
    labels = (text or id for id, text, _, _ in item.found)
    return next((label for label in labels if label != item.gold), "")


def separation(a: np.ndarray, b: np.ndarray) -> float:
    """The probability that a value of `a` exceeds one of `b` (AUC); ties count half."""
    from scipy import stats

    ranks = stats.rankdata(np.concatenate([a, b]))[: len(a)]
    return float((ranks.sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))


def _places(items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    from scipy import stats

    values = np.array([(item.value, float(item.gold or 0)) for item in items])
    places = 100 * (stats.rankdata(values, axis=0, nan_policy="omit") - 1) / (len(items) - 1)
    return places[:, 0], places[:, 1]


def _surest(item: Item) -> float:
    return max((score for _, _, score, grade in item.found if grade <= 0), default=0.0)


def _taken_for(items: Sequence[Item]) -> str:
    """The most frequent wrong label; the alphabetically first of equally frequent ones."""
    wrong = [label for item in items if (label := wrong_label(item))]
    return min(wrong, key=lambda label: (-wrong.count(label), label), default="")
