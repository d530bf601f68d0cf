"""The batches of an epoch as row numbers: a pure function of data, settings, seed and epoch.

Every process computes the same, and a run that is resumed needs no stored state.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.distinct import Cut
from polyvec.data.training.mixing import Mixing, counts, passes
from polyvec.data.training.rows import TrainingRow
from polyvec.errors import DataError, SettingsError, known

WINDOW = 50  # batches whose rows are sorted together by length
# First numbers of the random streams, so that no two of them coincide.
ROWS, MIX, ORDER, BESIDE = range(4)


@dataclass(frozen=True, slots=True)
class Epoch(Sequence[np.ndarray]):
    """Batches of row numbers.

    num_moved: rows that went to a later batch because a text of theirs was in the batch already.
    dropped: rows that no batch could take, by number.
    num_small: batches with fewer rows than the batch size.
    num_repeated: batches that come twice, so that the epoch has as many as the first.
    """

    number: int
    batches: tuple[np.ndarray, ...]
    num_moved: int = 0
    dropped: tuple[int, ...] = ()
    num_small: int = 0
    num_repeated: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    @overload
    def __getitem__(self, place: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[np.ndarray, ...]: ...
    def __getitem__(self, place: int | slice) -> np.ndarray | tuple[np.ndarray, ...]:
        return self.batches[place]

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.batches))

    def report(self) -> str:
        """A line for the progress report."""
        parts = [f"{self.num_rows} rows in {len(self)} batches"]
        if self.num_small:
            parts.append(f"{self.num_small} of them smaller")
        if self.num_moved:
            parts.append(f"{self.num_moved} rows moved to a later batch (equal texts)")
        if self.dropped:
            parts.append(f"{len(self.dropped)} rows left out")
        if self.num_repeated:
            parts.append(f"{self.num_repeated} batches repeated")
        return ", ".join(parts)


class Batches:
    """The batches of each epoch over the data: as many in every epoch as in the first.

    `batch_size` is of the whole batch, over all processes; rows of other groups come on top.
    Raises SettingsError for settings that fit no batch.
    """

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        mixing: Mixing | None = None,
        *,
        seed: int = 42,
        advice: str = "lower batch_size, or set drop_last = false",
    ) -> None:
        """`advice` ends the error of rows that give no batch."""
        if batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size}, expected 1 or more")
        mixing = mixing or Mixing()
        self.data, self.batch_size, self.mixing, self.seed = data, batch_size, mixing, seed
        self.advice = advice
        groups = {each.table.group for each in data.sets}
        for name in mixing.group_sizes:
            if name not in groups or not name:
                raise SettingsError(f"mixing group_sizes: no group {name!r}.{known(name, groups)}")
        missing = groups - set(mixing.group_sizes) - {""}
        if missing:
            raise SettingsError(f"mixing group_sizes: no size for the group {min(missing)!r}")
        self.main = [number for number, each in enumerate(data.sets) if not each.table.group]
        if not self.main:
            raise SettingsError("all data sets are in groups; one must be without")
        sizes = [len(data.sets[number].rows) for number in self.main]
        names = [data.sets[number].name for number in self.main]
        self.counts = counts(names, sizes, _weighted(data, self.main, mixing))
        self._last: Epoch | None = None
        self._length: int | None = None  # batches of an epoch, once the first is known

    def epoch(self, number: int) -> Epoch:
        """The batches of an epoch; the last one that was asked for is kept.

        Raises DataError if the rows give no batch.
        """
        if self._length is None:
            self._last = self._epoch(0)
            self._length = len(self._last)
        if self._last is None or self._last.number != number:
            self._last = self._epoch(number)
        return self._last

    def use(self, data: TrainingData) -> None:
        """Go on with the same rows under other negatives; an epoch keeps its number of batches."""
        self.data, self._last = data, None

    def rows(self, epoch: int, place: int) -> list[TrainingRow]:
        """The rows of a batch, with the documents that the epoch takes."""
        return [self.data.drawn(int(number), epoch) for number in self.epoch(epoch)[place]]

    def _epoch(self, number: int) -> Epoch:
        mixing = self.mixing
        texts = None if mixing.duplicates else self.data.drawn_texts(number)
        batches: list[np.ndarray] = []
        dropped: list[int] = []
        num_moved = 0
        lengths = self.data.drawn_lengths(number) if mixing.group_by_length else None
        for order in self._orders(number):
            if lengths is not None:
                order = self._by_length(order, lengths)
            cut = Cut(order, self.batch_size, texts)
            for batch in cut.batches:
                least = self.batch_size if mixing.drop_last else mixing.smallest
                if len(batch) >= least:
                    batches.append(np.array(batch, np.int64))
                else:
                    dropped += batch
            num_moved += cut.num_moved
        if not batches:
            raise DataError(
                f"{sum(self.counts)} rows give no batch of {self.batch_size}"
                + (" without equal texts" if num_moved else "")
                + f"; {self.advice}"
            )
        repeated = self._equalise(batches, dropped)
        if mixing.shuffle:
            draw = np.random.default_rng([self.seed, ORDER, number])
            batches = [batches[place] for place in draw.permutation(len(batches))]
        num_small = sum(len(batch) < self.batch_size for batch in batches)
        return Epoch(
            number,
            self._with_groups(batches, number),
            num_moved,
            tuple(dropped),
            num_small,
            repeated,
        )

    def _equalise(self, batches: list[np.ndarray], dropped: list[int]) -> int:
        """Make as many batches as the first epoch has; returns how many had to be repeated.

        Equal texts may need a batch more or less: the smallest is left out, the largest split.
        """
        if self._length is None:
            return 0
        repeated = 0
        while len(batches) > self._length:
            place = min(range(len(batches)), key=lambda place: len(batches[place]))
            dropped += batches.pop(place).tolist()
        while len(batches) < self._length:
            place = max(range(len(batches)), key=lambda place: len(batches[place]))
            half = len(batches[place]) // 2
            if self.mixing.drop_last or half < max(1, self.mixing.smallest):
                batches.append(batches[repeated])
                repeated += 1
            else:
                batches.append(batches[place][half:])
                batches[place] = batches[place][:half]
        return repeated

    def _orders(self, epoch: int) -> Iterator[np.ndarray]:
        """Rows of the epoch, in the order in which they fill batches: of each set, or of all."""
        orders = []
        for each, count in zip(self.main, self.counts, strict=True):
            first, size = int(self.data.starts[each]), len(self.data.sets[each].rows)
            orders.append(
                first
                + passes(
                    size,
                    epoch * count,
                    (epoch + 1) * count,
                    [self.seed, ROWS, each],
                    shuffle=self.mixing.shuffle,
                )
            )
        if self.mixing.one_dataset:
            yield from orders
            return
        mixed = np.concatenate(orders)
        if self.mixing.shuffle and len(orders) > 1:
            np.random.default_rng([self.seed, MIX, epoch]).shuffle(mixed)
        yield mixed

    def _by_length(self, order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        lengths = lengths[order]
        step = WINDOW * self.batch_size
        parts = [
            start + np.argsort(lengths[start : start + step], kind="stable")
            for start in range(0, len(order), step)
        ]
        return order[np.concatenate(parts)] if parts else order

    def _with_groups(self, batches: list[np.ndarray], epoch: int) -> tuple[np.ndarray, ...]:
        """The batches with the next rows of each other group behind their own."""
        for place, (name, size) in enumerate(sorted(self.mixing.group_sizes.items())):
            pool = np.concatenate(
                [
                    np.arange(self.data.starts[number], self.data.starts[number + 1])
                    for number, each in enumerate(self.data.sets)
                    if each.table.group == name
                ]
            )
            start = epoch * size * -(-sum(self.counts) // self.batch_size)
            order = passes(
                len(pool),
                start,
                start + size * len(batches),
                [self.seed, BESIDE, place],
                shuffle=self.mixing.shuffle,
            )
            beside = pool[order].reshape(len(batches), size)
            batches = [np.concatenate(both) for both in zip(batches, beside, strict=True)]
        return tuple(batches)


def _weighted(data: TrainingData, sets: list[int], mixing: Mixing) -> Mixing:
    """The settings with the weights that stand in the tables of the sets."""
    own = {
        data.sets[number].name: weight
        for number in sets
        if (weight := data.sets[number].table.weight) is not None
    }
    if not own:
        return mixing
    return replace(mixing, weights={**own, **mixing.weights})
