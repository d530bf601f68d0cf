"""All examples of a stage by number, and what is drawn of each in an epoch."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet, training_sets
from polyvec.data.words import hash64
from polyvec.errors import DataError, SettingsError

POSITIVE, NEGATIVE = 1, 2  # kinds of a text of a row; 0 is its query


@dataclass(frozen=True, slots=True)
class Texts:
    """Hashes of the texts of all rows: row i has `hashes[starts[i]:starts[i + 1]]`."""

    hashes: np.ndarray
    starts: np.ndarray

    def of(self, row: int) -> list[int]:
        found: list[int] = self.hashes[self.starts[row] : self.starts[row + 1]].tolist()
        return found


class TrainingData(Sequence[TrainingRow]):
    """The rows of several data sets, numbered through; row i is the same in every process.

    Which positives and negatives of a row an epoch takes depends on the seed, the epoch and the
    row's number only.
    """

    def __init__(self, sets: Iterable[TrainingSet], *, seed: int = 42) -> None:
        self.sets = tuple(sets)
        if not self.sets:
            raise SettingsError("a stage needs data: tables with path, name or hub")
        names = [each.name for each in self.sets]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise DataError(
                f"two data sets are called {min(twice)!r}; give one of them another name"
            )
        self.seed = seed
        sizes = [len(each.rows) for each in self.sets]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._texts: Texts | None = None
        self._kinds = np.empty(0, np.uint8)

    @classmethod
    def read(
        cls,
        tables: Sequence[Mapping[str, Any]],
        data_folder: str | Path | None = None,
        *,
        seed: int = 42,
        where: str = "[[stage]] data",
    ) -> "TrainingData":
        """What the `data` tables of a stage name. Raises SettingsError and DataError."""
        found = [
            each
            for number, table in enumerate(tables)
            for each in training_sets(table, data_folder, seed=seed, where=f"{where}[{number}]")
        ]
        return cls(found, seed=seed)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, number: int) -> TrainingRow: ...
    @overload
    def __getitem__(self, number: slice) -> list[TrainingRow]: ...
    def __getitem__(self, number: int | slice) -> TrainingRow | list[TrainingRow]:
        """A row with all its documents."""
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        owner = self.set_of(number)
        return self.sets[owner].rows[number - int(self.starts[owner])]

    def set_of(self, number: int) -> int:
        return int(np.searchsorted(self.starts, number, side="right")) - 1

    def drawn(self, number: int, epoch: int) -> TrainingRow:
        """A row with the documents that the epoch takes, and their teacher's scores."""
        row, table = self[number], self.sets[self.set_of(number)].table
        counts = (len(row.positives), len(row.negatives))
        if counts[0] <= (table.num_positives or counts[0]) and counts[1] <= _most(
            table.num_negatives, counts[1]
        ):
            return row
        first = int(self.texts().starts[number])
        kinds = np.repeat([0, POSITIVE, NEGATIVE], [1, *counts])
        taken = self._taken(first + np.arange(len(kinds)), kinds, epoch, number)
        return _reduced(row, np.flatnonzero(taken))

    def all_texts(self) -> Iterator[str]:
        """Every text of every row, of chats every turn: what must not be in a test set."""
        for each in self.sets:
            for row in each.rows:
                yield from row.texts
                yield from row.turns[1:]

    def texts(self) -> Texts:
        """Hashes of all texts of all rows; computed once."""
        if self._texts is None:
            hashes, kinds, starts = array("Q"), bytearray(), array("q", [0])
            for each in self.sets:
                for row in each.rows:
                    hashes.extend(map(hash64, row.texts))
                    kinds += bytes([0]) + bytes([POSITIVE]) * len(row.positives)
                    kinds += bytes([NEGATIVE]) * len(row.negatives)
                    starts.append(len(hashes))
            self._kinds = np.frombuffer(bytes(kinds), np.uint8)
            self._texts = Texts(np.array(hashes, np.uint64), np.array(starts, np.int64))
        return self._texts

    def drawn_texts(self, epoch: int) -> Texts:
        """Hashes of the texts that the epoch takes of each row; of rows without in-batch
        negatives none."""
        texts = self.texts()
        taken = np.zeros(len(texts.hashes), bool)
        for number, each in enumerate(self.sets):
            rows = slice(int(self.starts[number]), int(self.starts[number + 1]) + 1)
            starts = texts.starts[rows]
            places = np.arange(starts[0], starts[-1])
            owners = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
            kinds = self._kinds[places]
            found = self._taken(places, kinds, epoch, rows.start, owners)
            alone = np.array([not row.in_batch for row in each.rows], bool)
            taken[places] = found & ~alone[owners]
        sums = np.concatenate([[0], np.cumsum(taken)])
        return Texts(texts.hashes[taken], sums[texts.starts])

    def _taken(
        self,
        places_T: np.ndarray,
        kinds_T: np.ndarray,
        epoch: int,
        first_row: int,
        owners_T: np.ndarray | None = None,
    ) -> np.ndarray:
        """Which of these texts, given by place, kind and row, the epoch takes: bool [T]."""
        if owners_T is None:
            owners_T = np.zeros(len(places_T), np.int64)
        table = self.sets[self.set_of(first_row)].table
        keys_T = _random(places_T, self.seed, epoch)
        groups_T = owners_T * 3 + kinds_T
        ranks_T = _ranks(groups_T, np.arange(len(places_T)))
        most_T = self._leading(first_row, owners_T, table.negatives_first)
        positive_T, negative_T = kinds_T == POSITIVE, kinds_T == NEGATIVE
        if not table.shuffle_positive:
            keys_T = np.where(positive_T, ranks_T.astype(np.uint64), keys_T)
        lead_T = negative_T & (ranks_T < most_T)
        keys_T = np.where(lead_T, ranks_T.astype(np.uint64), keys_T)
        drawn_T = _ranks(groups_T, keys_T)
        taken_T = np.ones(len(places_T), bool)
        if table.num_positives is not None:
            taken_T &= ~positive_T | (drawn_T < table.num_positives)
        if table.num_negatives is not None:
            taken_T &= ~negative_T | (drawn_T < table.num_negatives)
        return taken_T

    def _leading(self, first_row: int, owners_T: np.ndarray, wanted: int) -> np.ndarray:
        """How many first negatives are always taken of the row that each text belongs to."""
        num_rows = int(owners_T[-1]) + 1 if len(owners_T) else 0
        own = [self[first_row + row].leading for row in range(num_rows)] if wanted else []
        most = np.array([wanted if each is None else min(each, wanted) for each in own], np.int64)
        return most[owners_T] if wanted else np.zeros(len(owners_T), np.int64)


def _most(wanted: int | None, there: int) -> int:
    return there if wanted is None else wanted


def _ranks(groups_T: np.ndarray, keys_T: np.ndarray) -> np.ndarray:
    """The rank of each key among those of its group, from 0."""
    order = np.lexsort((keys_T, groups_T))
    sorted_groups = groups_T[order]
    new = np.concatenate([[True], sorted_groups[1:] != sorted_groups[:-1]])
    first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - first
    return ranks


def _random(places: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A uint64 for each place that looks random: SplitMix64 (Steele et al. 2014), as a counter.

    The lowest values are kept free for what is always taken.
    """
    start = np.uint64(hash64(f"{seed} {epoch}"))
    with np.errstate(over="ignore"):
        mixed = (places.astype(np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: np.ndarray = (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1 << 32)
    return found


def _reduced(row: TrainingRow, places: np.ndarray) -> TrainingRow:
    """The row with these of its texts: 0 is the query, then positives, then negatives."""
    texts, num = row.texts, len(row.positives)
    positives = [int(place) for place in places if 0 < place <= num]
    negatives = [int(place) for place in places if place > num]
    scores = row.teacher_scores
    return replace(
        row,
        positives=tuple(texts[place] for place in positives),
        negatives=tuple(texts[place] for place in negatives),
        teacher_scores=(
            tuple(scores[place - 1] for place in (*positives, *negatives)) if scores else ()
        ),
    )
