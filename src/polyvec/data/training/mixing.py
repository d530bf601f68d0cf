"""How data sets share an epoch, and which rows each of them gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from polyvec.errors import SettingsError, known


@dataclass(frozen=True, slots=True)
class Mixing:
    """The `mixing` table of a stage.

    one_dataset: each batch has rows of one data set, so that its negatives are of the same task.
    temperature: a set's share of an epoch is size ** temperature: 1 takes every row once, 0 gives
        all sets the same share (small ones repeat, of large ones each epoch takes other rows).
    weights: shares by the sets' names, in place of their sizes.
    duplicates: allow equal texts in a batch; they would be each other's negatives.
    drop_last: leave out rows that do not fill a batch; without it they make smaller batches.
    smallest: smaller batches are left out, too.
    group_by_length: rows of a batch have similar lengths.
    shuffle: without it rows keep the order of the files (a curriculum).
    group_sizes: rows of each group beside the group "" that are added to every batch.
    """

    one_dataset: bool = True
    temperature: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)
    duplicates: bool = False
    drop_last: bool = False
    smallest: int = 1
    group_by_length: bool = False
    shuffle: bool = True
    group_sizes: Mapping[str, int] = field(default_factory=dict)


def counts(names: Sequence[str], sizes: Sequence[int], mixing: Mixing) -> list[int]:
    """Rows that each set gives to an epoch; their sum is the sum of the sizes.

    Raises SettingsError for a weight that is missing, not above 0, or of an unknown set.
    """
    if not mixing.temperature >= 0:
        raise SettingsError(f"mixing temperature is {mixing.temperature}, expected 0 or more")
    for name, weight in mixing.weights.items():
        if name not in names:
            raise SettingsError(f"mixing weights: no data set {name!r}.{known(name, names)}")
        if not weight > 0:
            raise SettingsError(f"mixing weights: {name!r} is {weight}, expected above 0")
    missing = [name for name in names if name not in mixing.weights]
    if mixing.weights and missing:
        raise SettingsError(f"mixing weights: none for the data set {missing[0]!r}")
    if not mixing.weights and mixing.temperature == 1:
        return list(sizes)
    shares = np.array(
        [mixing.weights[name] for name in names]
        if mixing.weights
        else [size**mixing.temperature for size in sizes],
        float,
    )
    return _rounded(sum(sizes) * shares / shares.sum())


def _rounded(wanted: np.ndarray) -> list[int]:
    """Whole numbers of the same sum: the largest remainders are rounded up."""
    whole = np.floor(wanted).astype(int)
    missing = round(float(wanted.sum())) - int(whole.sum())
    order = np.argsort(-(wanted - whole), kind="stable")
    whole[order[:missing]] += 1
    return [int(each) for each in whole]


def passes(size: int, start: int, stop: int, key: Sequence[int], *, shuffle: bool) -> np.ndarray:
    """Places `start` to `stop` of an endless series of passes over `size` rows.

    Every pass has every row once, in an order of its own that depends on the key and the pass.
    """
    parts = []
    for number in range(start // size, -(-stop // size)):
        order = np.arange(size)
        if shuffle:
            np.random.default_rng([*key, number]).shuffle(order)
        first = number * size
        parts.append(order[max(start - first, 0) : min(stop - first, size)])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
