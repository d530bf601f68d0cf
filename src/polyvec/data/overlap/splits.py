"""Overlap between the splits of a folder, or between two folders.

The split comes from a file's name (train.jsonl, en_test.jsonl, queries.dev.jsonl.gz), from a field
"split" in its rows or, for queries, from the qrels that name them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from polyvec.data.overlap.overlap import NGRAM, NONE, Overlap, equal_rows, overlap
from polyvec.data.stats.files import SPLITS, DataFile, data_files, split_of
from polyvec.data.stats.statistics import PROGRESS_ROWS, FolderStats, Progress, text_rows
from polyvec.data.tasks.qrels import read_qrels
from polyvec.data.texts import ID_COLUMNS
from polyvec.data.words import normalized, words
from polyvec.errors import InputError

ORDER = ("train", "dev", "test")  # a split must not share texts with an earlier one
THRESHOLDS = (0.9, 0.95, 0.99)  # cosines above which neighbours are counted
NUM_PAIRS = 5
WHOLE_ROWS = "(whole rows)"

Embed = Callable[[list[str]], np.ndarray]
# Scores and rows, both [N, k], of the k nearest documents of N queries: index.exact.top_k, which
# data may not import.
Search = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Pair:
    """A test text and a similar training text, each with its file:line.

    `how` is "equal", "same words" (except for case and punctuation), "n-grams" or "neighbour";
    `score` is the share of shared n-grams, or the cosine of neighbours.
    """

    how: str
    score: float
    test_place: str
    train_place: str
    test_text: str
    train_text: str


@dataclass(frozen=True, slots=True)
class SplitOverlap:
    """One field of a test split compared with all texts of a training split.

    In the field "(whole rows)" a text consists of all texts of a row, in any order and without
    case and punctuation; n-grams and neighbours are not computed for it. `num_near` counts
    neighbours at or above each of THRESHOLDS.
    """

    train: str
    test: str
    field: str
    num_train: int
    num_texts: int
    num_exact: int
    num_same: int
    n: int
    num_ngram: int | None = None
    mean_ngram_share: float | None = None
    num_near: Mapping[str, int] | None = None
    worst: tuple[Pair, ...] = ()


def split_overlaps(
    stats: FolderStats,
    against: FolderStats | None = None,
    *,
    n: int = NGRAM,
    neighbours: tuple[Embed, Search] | None = None,
    num_pairs: int = NUM_PAIRS,
    progress: Progress = lambda name, rows: None,
) -> list[SplitOverlap]:
    """What later splits of a folder share with earlier ones, or `against` with the folder.

    With two folders, the training side is the first without its dev and test splits, and the
    test side is each file of the second without its train split; a side that would be empty is
    used whole. `neighbours` are functions that embed texts and search vectors; with them, the
    nearest training text of each test text is found too.
    """
    nearest = _Nearest(*neighbours) if neighbours else None
    found: list[SplitOverlap] = []
    for train, tests in _comparisons(stats, against, progress):
        texts = [text for test in tests for text in test.texts]
        shared = overlap(train.texts, texts, n)
        near = nearest(train.texts, texts) if nearest else None
        stop = 0
        for test in tests:
            part = slice(stop, stop := stop + len(test.texts))
            found += _fields(train, test, _Findings.of(shared, near, part), num_pairs)
            if test.wholes and train.wholes:
                found.append(_whole_rows(train, test, n))
    return found


# ---- what is compared ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Side:
    """The texts of a split with their fields and places; `wholes` are rows of several texts."""

    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    wholes: list[str] = field(default_factory=list)
    whole_places: list[str] = field(default_factory=list)

    def add(self, row: "_Row") -> None:
        if row.name not in self.names:
            self.names.append(row.name)
        place = f"{row.file.path}:{row.line}"
        for name, text in row.texts:
            self.texts.append(text)
            self.fields.append(name)
            self.places.append(place)
        if len(row.texts) > 1:
            self.wholes.append("\n".join(sorted(normalized(text) for _, text in row.texts)))
            self.whole_places.append(place)

    @property
    def name(self) -> str:
        more = len(self.names) - 3
        return ", ".join(self.names[:3]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class _Row:
    """A row with texts; `name` is that of its file, plus the split if the name lacks it."""

    name: str
    file: DataFile
    line: int
    split: str | None
    texts: list[tuple[str, str]]


def _comparisons(
    stats: FolderStats, against: FolderStats | None, progress: Progress
) -> Iterator[tuple[_Side, list[_Side]]]:
    """Each training side with the test sides that must not share texts with it."""
    if against is None:
        for parts in _series(stats, progress).values():
            ordered = [parts[split] for split in ORDER if split in parts]
            yield from ((train, ordered[i:]) for i, train in enumerate(ordered[:-1], 1))
        return
    if Path(stats.path).resolve() == Path(against.path).resolve():
        raise InputError(
            f"{against.path}: cannot be compared with itself; give two different folders"
        )
    train = _Side()
    for row in _without(stats, {"dev", "test"}, progress):
        train.add(row)
    files: dict[str, _Side] = {}
    for row in _without(against, {"train"}, progress):
        files.setdefault(row.name, _Side()).add(row)
    yield train, list(files.values())


def _series(
    stats: FolderStats, progress: Progress
) -> dict[tuple[str | int | None, ...], dict[str, _Side]]:
    """Sides by split, for each series of files whose names differ only in the split."""
    found: dict[tuple[str | int | None, ...], dict[str, _Side]] = {}
    for row in _rows(stats, progress):
        if row.split is not None:
            series = split_of(row.file.name)[1]
            found.setdefault((series,), {}).setdefault(row.split, _Side()).add(row)
    return found


def _without(stats: FolderStats, splits: set[str], progress: Progress) -> Iterable[_Row]:
    """The rows of other splits, or all rows; their names include the folder."""
    rows = list(_rows(stats, progress))
    folder = Path(stats.path).resolve()
    before = f"{folder.name}/" if folder.is_dir() else f"{folder.parent.name}/"
    rows = [row for row in rows if row.split not in splits] or rows
    return [dataclasses.replace(row, name=before + row.name) for row in rows]


def _rows(stats: FolderStats, progress: Progress) -> Iterator[_Row]:
    """Every row with texts; a query comes once for each split that judges it."""
    files, _ = data_files(stats.path)
    names = {file.name: [text.name for text in file.texts] for file in stats.files}
    judged = _judged(files)
    num_rows = 0
    for file in files:
        if not names.get(file.name):
            continue
        split, _ = split_of(file.name)
        queries = judged.get(str(PurePosixPath(file.name).parent), {})
        is_queries = file.stem.startswith("queries")
        for line, row, texts in text_rows(file, names[file.name]):
            splits: Sequence[str | None] = (split or _split_field(row),)
            if splits == (None,) and is_queries:
                splits = [s for s, ids in queries.items() if _id(row) in ids] or (None,)
            for each in splits if texts else ():
                name = file.name if split or each is None else f"{file.name} ({each})"
                yield _Row(name, file, line, each, texts)
            num_rows += 1
            if num_rows % PROGRESS_ROWS == 0:
                progress(file.name, PROGRESS_ROWS)


def _judged(files: Sequence[DataFile]) -> dict[str, dict[str, set[str]]]:
    """The ids of the judged queries, by folder and split."""
    found: dict[str, dict[str, set[str]]] = {}
    for file in files:
        split, _ = split_of(file.path.name)
        if file.is_qrels and split is not None:
            place = PurePosixPath(file.name).parent
            folder = str(place.parent if place.name == "qrels" else place)
            ids = found.setdefault(folder, {}).setdefault(split, set())
            ids.update(query for _, query, _, _ in read_qrels(file.path))
    return found


def _split_field(row: Mapping[str, Any]) -> str | None:
    value = row.get("split")
    return SPLITS.get(value.lower()) if isinstance(value, str) else None


def _id(row: Mapping[str, Any]) -> str:
    return str(next((row[name] for name in ID_COLUMNS if row.get(name) is not None), ""))


# ---- comparing ----------------------------------------------------------------------------------


class _Nearest:
    """Finds the nearest training text of each test text; embeds each distinct text once."""

    def __init__(self, embed: Embed, search: Search) -> None:
        self.embed, self.search, self.known = embed, search, dict[str, np.ndarray]()

    def __call__(self, train: Sequence[str], test: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and row of the nearest training text, [N] each."""
        cosines, rows = self.search(self._vectors(test), self._vectors(train), 1)
        return cosines[:, 0], rows[:, 0]

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self.embed(new), strict=True))
        return np.stack([self.known[text] for text in texts])


@dataclass(frozen=True, slots=True)
class _Findings:
    """Results for the texts of one side: those of Overlap, and the nearest texts."""

    n: int
    exact_rows: np.ndarray
    same_rows: np.ndarray
    shares: np.ndarray
    ngram_rows: np.ndarray
    cosines: np.ndarray | None
    near_rows: np.ndarray | None

    @classmethod
    def of(
        cls, found: Overlap, near: tuple[np.ndarray, np.ndarray] | None, part: slice
    ) -> "_Findings":
        return cls(
            found.n,
            found.exact_rows[part],
            found.same_rows[part],
            found.ngram_shares[part],
            found.ngram_rows[part],
            near[0][part] if near else None,
            near[1][part] if near else None,
        )


def _fields(train: _Side, test: _Side, found: _Findings, num_pairs: int) -> Iterator[SplitOverlap]:
    of_field = np.array(test.fields)
    for name in dict.fromkeys(test.fields):
        rows = np.flatnonzero(of_field == name)
        shares = found.shares[rows]
        counts = None
        if found.cosines is not None:
            near = found.cosines[rows]
            counts = {f"{limit:g}": int((near >= limit).sum()) for limit in THRESHOLDS}
        pairs = (
            *_copied(train, test, found, rows, num_pairs),
            *_neighbours(train, test, found, rows, num_pairs),
        )
        yield SplitOverlap(
            train.name,
            test.name,
            name,
            num_train=len(train.texts),
            num_texts=len(rows),
            num_exact=int((found.exact_rows[rows] != NONE).sum()),
            num_same=int((found.same_rows[rows] != NONE).sum()),
            n=found.n,
            num_ngram=int((shares > 0).sum()),
            mean_ngram_share=float(shares.mean()),
            num_near=counts,
            worst=pairs,
        )


def _whole_rows(train: _Side, test: _Side, n: int) -> SplitOverlap:
    num = int((equal_rows(train.wholes, test.wholes) != NONE).sum())
    sizes = (len(train.wholes), len(test.wholes))
    return SplitOverlap(train.name, test.name, WHOLE_ROWS, *sizes, num, num, n)


def _copied(
    train: _Side, test: _Side, found: _Findings, rows: np.ndarray, num_pairs: int
) -> list[Pair]:
    """The test texts with most copied words, each text once."""
    hit = rows[(found.shares[rows] > 0) | (found.same_rows[rows] != NONE)]
    pairs: dict[str, tuple[float, Pair]] = {}
    for row in hit.tolist():
        how, other, share = "n-grams", found.ngram_rows[row], float(found.shares[row])
        if found.exact_rows[row] != NONE:
            how, other, share = "equal", found.exact_rows[row], 1.0
        elif found.same_rows[row] != NONE:
            how, other, share = "same words", found.same_rows[row], 1.0
        text = test.texts[row]
        pair = Pair(how, share, test.places[row], train.places[other], text, train.texts[other])
        pairs.setdefault(text, (share * len(words(text)), pair))
    worst = sorted(pairs.values(), key=lambda item: -item[0])
    return [pair for _, pair in worst[:num_pairs]]


def _neighbours(
    train: _Side, test: _Side, found: _Findings, rows: np.ndarray, num_pairs: int
) -> list[Pair]:
    """The nearest pairs at or above the lowest threshold, except those with the same words."""
    cosines, others = found.cosines, found.near_rows
    if cosines is None or others is None:
        return []
    close = rows[(cosines[rows] >= THRESHOLDS[0]) & (found.same_rows[rows] == NONE)]
    pairs: dict[str, Pair] = {}
    for row in close[np.argsort(-cosines[close], kind="stable")].tolist():
        if len(pairs) == num_pairs:
            break
        text, places = test.texts[row], (test.places[row], train.places[others[row]])
        pair = Pair("neighbour", float(cosines[row]), *places, text, train.texts[others[row]])
        pairs.setdefault(text, pair)
    return list(pairs.values())
