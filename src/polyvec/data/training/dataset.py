"""All examples of a stage by number, and what is drawn of each in an epoch."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, overload

import numpy as np

from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet, training_sets
from polyvec.data.words import hash64
from polyvec.errors import DataError, SettingsError

QUERY, POSITIVE, NEGATIVE = range(3)  # kinds of a text of a row
CHUNK = 1 << 16  # rows whose draws are made at a time


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
        self._digests: tuple[str, ...] = ()
        self._mask: tuple[int, np.ndarray] = (-1, np.empty(0, bool))
        self._kinds: np.ndarray = np.empty(0)
        self._lengths: np.ndarray = self._kinds
        self._alone: np.ndarray = self._kinds
        self._leading: np.ndarray = self._kinds

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
        starts = self.texts().starts[number : number + 2]
        return _reduced(row, np.flatnonzero(self._taken(epoch)[slice(*starts)]))

    def all_texts(self) -> Iterator[str]:
        """Every text of every row, of chats every turn: what must not be in a test set."""
        for each in self.sets:
            for row in each.rows:
                yield from row.texts
                yield from row.turns[1:]

    def texts(self) -> Texts:
        """Hashes of all texts of all rows; computed once."""
        if self._texts is None:
            hashes, lengths, starts = array("Q"), array("L"), array("q", [0])
            kinds, alone, leading = bytearray(), bytearray(), array("q")
            digests = [blake2b(digest_size=16) for _ in self.sets]
            for each, digest in zip(self.sets, digests, strict=True):
                for row in each.rows:
                    texts = row.texts
                    digest.update(row.content.encode("utf-8", "surrogatepass"))
                    hashes.extend(map(hash64, texts))
                    lengths.extend(map(len, texts))
                    kinds.append(QUERY)
                    kinds += bytes([POSITIVE]) * len(row.positives)
                    kinds += bytes([NEGATIVE]) * len(row.negatives)
                    alone.append(not row.in_batch)
                    leading.append(len(row.negatives) if row.leading is None else row.leading)
                    starts.append(len(hashes))
            self._digests = tuple(each.hexdigest() for each in digests)
            self._lengths = np.array(lengths, np.int64)
            self._kinds = np.frombuffer(bytes(kinds), np.uint8)
            self._alone = np.frombuffer(bytes(alone), bool)
            self._leading = np.array(leading, np.int64)
            self._texts = Texts(np.array(hashes, np.uint64), np.array(starts, np.int64))
        return self._texts

    def digests(self) -> tuple[str, ...]:
        """A hash of each data set: of all fields of its rows, in their order."""
        self.texts()
        return self._digests

    def drawn_texts(self, epoch: int) -> Texts:
        """Hashes of the texts that the epoch takes of each row; of rows without in-batch
        negatives none."""
        texts = self.texts()
        taken = self._taken(epoch) & np.repeat(~self._alone, np.diff(texts.starts))
        sums = np.concatenate([[0], np.cumsum(taken)])
        return Texts(texts.hashes[taken], sums[texts.starts])

    def drawn_lengths(self, epoch: int) -> np.ndarray:
        """Characters of the texts that the epoch takes of each row, int64 [rows]."""
        texts = self.texts()
        sums = np.concatenate([[0], np.cumsum(self._lengths * self._taken(epoch))])
        return np.diff(sums[texts.starts])

    def _taken(self, epoch: int) -> np.ndarray:
        """Which of all texts the epoch takes: bool, kept for the last epoch."""
        if self._mask[0] != epoch:
            self._mask = (epoch, self._draw(epoch))
        return self._mask[1]

    def _draw(self, epoch: int) -> np.ndarray:
        starts = self.texts().starts
        taken = np.empty(int(starts[-1]), bool)
        for number in range(len(self.sets)):
            stop = int(self.starts[number + 1])
            for row in range(int(self.starts[number]), stop, CHUNK):
                rows = slice(row, min(row + CHUNK, stop))
                taken[starts[rows.start] : starts[rows.stop]] = self._draw_rows(rows, epoch)
        return taken

    def _draw_rows(self, rows: slice, epoch: int) -> np.ndarray:
        """Which texts of these rows, all of one set, the epoch takes: bool [T]."""
        table = self.sets[self.set_of(rows.start)].table
        starts = self.texts().starts[rows.start : rows.stop + 1]
        places_T = np.arange(starts[0], starts[-1])
        kinds_T = self._kinds[places_T]
        owners_T = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        groups_T = owners_T * 3 + kinds_T
        ranks_T = _ranks(groups_T, places_T)
        positive_T, negative_T = kinds_T == POSITIVE, kinds_T == NEGATIVE
        always_T = negative_T & (
            ranks_T < np.minimum(table.negatives_first, self._leading[rows])[owners_T]
        )
        if not table.shuffle_positive:
            always_T |= positive_T
        keys_T = np.where(always_T, ranks_T.astype(np.uint64), _random(places_T, self.seed, epoch))
        drawn_T = _ranks(groups_T, keys_T)
        taken_T = np.ones(len(places_T), bool)
        if table.num_positives is not None:
            taken_T &= ~positive_T | (drawn_T < table.num_positives)
        if table.num_negatives is not None:
            taken_T &= ~negative_T | (drawn_T < table.num_negatives)
        return taken_T


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
