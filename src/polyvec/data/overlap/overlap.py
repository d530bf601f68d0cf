"""Test texts that occur in the training data, in whole or in part.

Two tests: equal texts (exactly, and without case and punctuation), and shared word n-grams
(Brown et al. 2020, arXiv:2005.14165, appendix C). splits.py adds the nearest training text by
cosine similarity. N test texts, M training texts.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from polyvec.data.words import hash64, normalized, quarters, spaced, words
from polyvec.errors import InputError

NGRAM = 13  # words, as in the GPT-3 paper
MIN_NGRAM = 8  # its minimum; shorter texts occur in many others without being copied
CHUNK_WORDS = 1 << 18  # training words in memory at a time
KNOWN_WORDS = 1 << 20  # cached hashes of words; the cache is cleared when it is full
NONE = -1
FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
INVERSE = pow(FACTOR, -1, 1 << 64)
FILTER_BITS = 21
FILTER_MASK = np.uint64((1 << FILTER_BITS) - 1)


@dataclass(frozen=True, slots=True)
class Overlap:
    """What each of N test texts shares with the training texts, given as rows of those.

    All arrays are [N]; row -1 means none. `exact_rows` has the first training text that is equal
    except for white space, `same_rows` except for case and punctuation too. `ngram_shares` is the
    share of a text's n-grams that occur in training texts, and `ngram_rows` the training text with
    most of them. A text of fewer than n words is a single n-gram, which must occur in a training
    text or, below 8 words, be equal to one. In scripts without spaces, two letters of Han or kana
    count as a word, and four of Thai and similar scripts.
    """

    n: int
    num_train: int
    exact_rows: np.ndarray
    same_rows: np.ndarray
    ngram_shares: np.ndarray
    ngram_rows: np.ndarray

    def __len__(self) -> int:
        return len(self.exact_rows)

    @property
    def num_exact(self) -> int:
        return int((self.exact_rows != NONE).sum())

    @property
    def num_same(self) -> int:
        return int((self.same_rows != NONE).sum())

    @property
    def num_ngram(self) -> int:
        """Test texts with at least one shared n-gram."""
        return int((self.ngram_shares > 0).sum())

    @property
    def mean_ngram_share(self) -> float:
        """Mean share of the n-grams of a test text that are shared."""
        return float(self.ngram_shares.mean()) if len(self) else 0.0


def overlap(train_texts: Iterable[str], test_texts: Sequence[str], n: int = NGRAM) -> Overlap:
    """Find test texts in training texts, which are read once and not stored.

    >>> found = overlap(["A cat sat on a mat.", "Dogs"], ["a cat sat on a mat", "cats"])
    >>> found.num_exact, found.num_same, found.num_ngram
    (0, 1, 1)

    Raises InputError for an n below 1.
    """
    if n < 1:
        raise InputError(f"n-grams must have at least 1 word, got {n}")
    wanted = _Wanted(test_texts, n)
    exact, same = array("Q"), array("Q")
    known = _Known()
    waiting = _Words(known)
    for text in train_texts:
        exact.append(hash64(spaced(text)))
        plain = normalized(text)
        same.append(hash64(plain))
        waiting.add(plain)
        if len(waiting) >= CHUNK_WORDS:
            wanted.find(waiting)
            waiting = _Words(known, len(exact))
    wanted.find(waiting)
    exact_rows = _first_rows(np.asarray(exact), [spaced(text) for text in test_texts])
    same_rows = _first_rows(np.asarray(same), wanted.plain)
    shares, rows = wanted.found()
    short = wanted.short & (same_rows != NONE)
    shares[short], rows[short] = 1.0, same_rows[short]
    return Overlap(n, len(exact), exact_rows, same_rows, shares, rows)


def equal_rows(train_texts: Iterable[str], test_texts: Sequence[str]) -> np.ndarray:
    """The row of the first training text that is the same string, or -1; int64 [N]."""
    return _first_rows(np.array([hash64(text) for text in train_texts], np.uint64), test_texts)


def _first_rows(train_M: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The first training row with the hash of each text; -1 for empty texts."""
    hashes, first = np.unique(train_M, return_index=True)
    wanted = np.array([hash64(text) for text in texts], np.uint64)
    place, hit = _lookup(hashes, wanted)
    hit &= np.array([bool(text) for text in texts], bool)
    return np.where(hit, first[place] if len(first) else NONE, NONE)


def _lookup(sorted_hashes: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The position of each wanted hash in the sorted ones, and whether it is there."""
    if not len(sorted_hashes):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), bool)
    place = np.searchsorted(sorted_hashes, wanted).clip(max=len(sorted_hashes) - 1)
    return place, sorted_hashes[place] == wanted


# ---- n-grams ------------------------------------------------------------------------------------


class _Known(dict[str, int]):
    """A cache of the hashes of words."""

    def __missing__(self, word: str) -> int:
        found = self[word] = hash64(word)
        return found


class _Words:
    """The words of several texts, concatenated; `first` is the row of the first text."""

    def __init__(self, known: _Known, first: int = 0) -> None:
        self.known, self.first = known, first
        self.hashes, self.quarters, self.lengths = array("Q"), bytearray(), array("q")

    def add(self, plain: str) -> None:
        if len(self.known) > KNOWN_WORDS:
            self.known.clear()
        found = words(plain)
        self.hashes.extend(map(self.known.__getitem__, found))
        self.quarters += quarters(found)
        self.lengths.append(len(found))

    def __len__(self) -> int:
        return len(self.hashes)

    def rows(self) -> np.ndarray:
        """The row of each word's text."""
        rows = np.arange(self.first, self.first + len(self.lengths))
        return np.repeat(rows, np.asarray(self.lengths))


class _Runs:
    """Rolling hashes of runs of words: a polynomial in the words' hashes, modulo 2^64."""

    def __init__(self, found: _Words) -> None:
        self.rows = found.rows()
        num = len(found)
        self.ends = np.concatenate(
            [[0], np.cumsum(np.frombuffer(found.quarters, np.uint8), dtype=np.int64)]
        )
        powers = np.full(num, FACTOR, np.uint64).cumprod(dtype=np.uint64)
        self.inverses = np.full(num, INVERSE, np.uint64).cumprod(dtype=np.uint64)
        sums = np.cumsum(np.asarray(found.hashes) * powers, dtype=np.uint64)
        self.sums = np.concatenate([np.zeros(1, np.uint64), sums])

    def of(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Hashes and rows of the shortest run of at least `size` quarters from each word."""
        stop = np.searchsorted(self.ends, self.ends[:-1] + size)
        start = np.flatnonzero(stop <= len(self.rows))
        stop = stop[start]
        inside = self.rows[start] == self.rows[stop - 1]
        start, stop = start[inside], stop[inside]
        hashes = (self.sums[stop] - self.sums[start]) * self.inverses[start]
        return hashes, self.rows[start]


class _Wanted:
    """The n-grams of the test texts by size, and the training text in which each occurs."""

    def __init__(self, texts: Sequence[str], n: int) -> None:
        self.plain = [normalized(text) for text in texts]
        found = _Words(_Known())
        for plain in self.plain:
            found.add(plain)
        runs = _Runs(found)
        places = np.concatenate([[0], np.cumsum(np.asarray(found.lengths), dtype=np.int64)])
        sizes = np.diff(runs.ends[places])  # of each text, in quarters of a word
        self.short = sizes < 4 * min(n, MIN_NGRAM)
        whole = sizes[(sizes < 4 * n) & ~self.short]
        self.grams = {
            size: _Grams(runs, sizes >= size if size == 4 * n else sizes == size, size)
            for size in sorted({*whole.tolist(), 4 * n})
        }

    def find(self, found: _Words) -> None:
        runs = _Runs(found)
        for size, grams in self.grams.items():
            grams.find(*runs.of(size))

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """The share of shared n-grams and the training row with most of them, both [N]."""
        shares = np.zeros(len(self.plain), np.float32)
        rows = np.full(len(self.plain), NONE, np.int64)
        for grams in self.grams.values():
            grams.put(shares, rows)
        return shares, rows


class _Grams:
    """The n-grams of one size: all n-grams of long texts, or each short text as a whole."""

    def __init__(self, runs: _Runs, mine: np.ndarray, size: int) -> None:
        hashes, owners = runs.of(size)
        self.owners = owners[mine[owners]]
        self.hashes, self.places = np.unique(hashes[mine[owners]], return_inverse=True)
        self.train_rows = np.full(len(self.hashes), NONE, np.int64)
        # A one-hash Bloom filter: it rules out most n-grams of the training data at low cost.
        self.maybe = np.zeros(1 << FILTER_BITS, bool)
        self.maybe[self.hashes & FILTER_MASK] = True

    def find(self, hashes: np.ndarray, rows: np.ndarray) -> None:
        maybe = np.flatnonzero(self.maybe[hashes & FILTER_MASK])
        hashes, rows = hashes[maybe], rows[maybe]
        place, hit = _lookup(self.hashes, hashes)
        new = hit & (self.train_rows[place] == NONE)
        # Assigned in reverse order, so that the first training text wins.
        self.train_rows[place[new][::-1]] = rows[new][::-1]

    def put(self, shares: np.ndarray, rows: np.ndarray) -> None:
        trains = self.train_rows[self.places]
        hit = trains != NONE
        total = np.bincount(self.owners, minlength=len(shares))
        shared = np.bincount(self.owners[hit], minlength=len(shares))
        mine = total > 0
        shares[mine] = shared[mine] / total[mine]
        pairs, counts = np.unique(
            np.stack([self.owners[hit], trains[hit]]), axis=1, return_counts=True
        )
        # The last assignment wins: the training text with most n-grams, the first among equals.
        order = np.lexsort((-pairs[1], counts))
        rows[pairs[0][order]] = pairs[1][order]
