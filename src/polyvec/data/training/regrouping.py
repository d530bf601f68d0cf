"""Examples from several rows of a file: triplets, judged documents, classes, successive texts."""

import itertools
import random
from collections import defaultdict
from dataclasses import replace

from polyvec.data.training.rows import TrainingRow
from polyvec.errors import DataError

NUM_CLASS_NEGATIVES = 7


def nli_triplets(rows: list[TrainingRow], seed: int) -> list[TrainingRow]:
    """A premise with an entailed and a contradicting hypothesis (supervised SimCSE's form).

    Entailed and contradicting hypotheses of a premise are paired one to one, in the order of the
    file; a premise without an entailed one is left out, one without a contradicting one is a pair.
    Gao et al. 2021, arXiv:2104.08821.
    """
    of_premise: dict[str, dict[int, list[TrainingRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        of_premise[row.query][_nli_label(row)].append(row)
    found = []
    for by_label in of_premise.values():
        negatives = by_label[2]
        for place, row in enumerate(by_label[0]):
            own = negatives[place : place + 1]
            found.append(
                replace(
                    row,
                    negatives=tuple(each.positives[0] for each in own),
                    matches=True,
                    label=None,
                )
            )
    return found


def _nli_label(row: TrainingRow) -> int:
    if row.label not in (0, 1, 2):
        raise DataError(
            f"{row.place}: label {row.label} is not one of NLI's: 0 entailment, 1 neutral, "
            "2 contradiction"
        )
    return row.label


def class_pairs(rows: list[TrainingRow], seed: int) -> list[TrainingRow]:
    """Each text with another text of its class, and texts of other classes as negatives.

    Both are drawn by the seed. A text whose class has no other is left out. Documents of other
    rows of a batch are often of the same class, so they do not count as negatives.
    """
    texts: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        if row.label is None:
            raise DataError(f"{row.place}: no column 'label', which examples of classes need")
        texts[row.label].append(row.query)
    classes = sorted(texts)
    if len(classes) < 2:
        raise DataError(f"{rows[0].place}: all texts are of one class, so there are no negatives")
    draw = random.Random(seed)
    found = []
    for row in rows:
        assert row.label is not None
        own = draw.sample(texts[row.label], k=min(4, len(texts[row.label])))
        positive = next((text for text in own if text != row.query), None)
        if positive is None:
            continue
        others = [each for each in classes if each != row.label]
        chosen = draw.sample(others, k=min(NUM_CLASS_NEGATIVES, len(others)))
        negatives = tuple(draw.choice(texts[each]) for each in chosen)
        found.append(
            replace(row, positives=(positive,), negatives=negatives, in_batch=False, symmetric=True)
        )
    return found


def judged(rows: list[TrainingRow], seed: int) -> list[TrainingRow]:
    """One example for each query: documents with label 1 (or above) match it, those with 0 do not.

    Queries without a matching document are left out.
    """
    of_query: dict[str, list[TrainingRow]] = defaultdict(list)
    for row in rows:
        if row.label is None:
            raise DataError(f"{row.place}: no column 'label', which judged documents need")
        of_query[row.query].append(row)
    found = []
    for same in of_query.values():
        positives = [text for row in same if row.label for text in row.positives]
        negatives = [text for row in same if not row.label for text in row.positives]
        if positives:
            found.append(
                replace(
                    same[0],
                    positives=tuple(dict.fromkeys(positives)),
                    negatives=tuple(dict.fromkeys(negatives)),
                    matches=True,
                    label=None,
                )
            )
    return found


def successive(rows: list[TrainingRow], seed: int) -> list[TrainingRow]:
    """Each text with the next one of the same document, in the order of the file."""
    return [
        replace(row, positives=(after.query,), label=None)
        for row, after in itertools.pairwise(rows)
        if row.label == after.label
    ]
