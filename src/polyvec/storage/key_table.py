"""Where the vector of each key is, for millions of keys in 25 bytes each.

A dict of a million keys takes 250 MB. Here the keys are in sorted arrays; the newest ones wait in
a dict, so that an addition does not move them all.

N keys.
"""

from typing import NamedTuple

import numpy as np

NUM_WAITING = 65_536  # in the dict, about 16 MB
REST = np.dtype(
    [("second", np.uint64), ("source", np.int32), ("row", np.int32), ("truncated", bool)]
)


class Place(NamedTuple):
    """A source by its number, the row in it, and whether the text was truncated."""

    source: int
    row: int
    truncated: bool


class KeyTable:
    """Places by keys of 16 bytes. A key that is set again has its new place."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, Place] = {}
        # An array of its own, as searchsorted copies what is not contiguous.
        self._firsts_N = np.empty(0, np.uint64)  # the first halves of the keys, sorted
        self._rest_N = np.empty(0, REST)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._firsts_N)

    def __contains__(self, key: bytes) -> bool:
        return key in self._waiting or self._find(key) is not None

    def get(self, key: bytes) -> Place | None:
        """The place of a key, None if it has none."""
        if key in self._waiting:
            return self._waiting[key]
        at = self._find(key)
        return None if at is None else Place(*self._rest_N[at].item()[1:])

    def set(self, key: bytes, place: Place) -> None:
        at = self._find(key)
        if at is not None:
            self._rest_N[at] = (self._rest_N[at]["second"], *place)
            return
        self._waiting[key] = place
        if len(self._waiting) >= NUM_WAITING:
            self._sort_in()

    def forget(self, source: int) -> None:
        """Drop the keys whose place is in this source."""
        self._sort_in()
        kept_N = self._rest_N["source"] != source
        self._firsts_N, self._rest_N = self._firsts_N[kept_N], self._rest_N[kept_N]

    def _find(self, key: bytes) -> int | None:
        first, second = _halves(key)
        at = int(np.searchsorted(self._firsts_N, np.uint64(first)))
        # Keys may share a half.
        while at < len(self._firsts_N) and self._firsts_N[at] == first:
            if self._rest_N[at]["second"] == second:
                return at
            at += 1
        return None

    def _sort_in(self) -> None:
        halves = [_halves(key) for key in self._waiting]
        rest = [(half[1], *at) for half, at in zip(halves, self._waiting.values(), strict=True)]
        firsts_N = np.concatenate([self._firsts_N, np.array([a for a, _ in halves], np.uint64)])
        rest_N = np.concatenate([self._rest_N, np.array(rest, REST)])
        order_N = np.argsort(firsts_N, kind="stable")
        self._firsts_N, self._rest_N = firsts_N[order_N], rest_N[order_N]
        self._waiting.clear()


def _halves(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
