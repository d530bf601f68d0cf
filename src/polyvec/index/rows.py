"""Vectors of an index on disk, compared with checksums block by block when they are first read.

N texts, E numbers a vector.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from polyvec.errors import IndexStoreError
from polyvec.storage.checksums import DIGITS, crc32

BLOCK = 4096  # rows of one checksum: 245 checksums, 2 kB, for a million texts


def block_sums(vectors_NE: np.ndarray) -> str:
    """The checksums of each block of rows, one after another."""
    starts = range(0, len(vectors_NE), BLOCK)
    return "".join(crc32(vectors_NE[start : start + BLOCK]) for start in starts)


class CheckedRows:
    """Rows [N, E] of a file, of which a block is checked when it is first read, and only then.

    Opening costs nothing this way, and the first search what reading costs anyway and a checksum.
    `sums` is "" for an index of an older version, whose rows cannot be checked.
    """

    def __init__(self, path: Path, rows_NE: np.ndarray, sums: str) -> None:
        self.path, self._rows_NE = path, rows_NE
        num_blocks = -(-len(rows_NE) // BLOCK)
        self.has_sums = bool(sums) or not num_blocks
        if sums and len(sums) != num_blocks * DIGITS:
            raise IndexStoreError(
                f"{path}: damaged ({len(sums) // DIGITS} checksums for {num_blocks} blocks of "
                "rows); build the index again"
            )
        self._sums = [sums[at : at + DIGITS] for at in range(0, len(sums), DIGITS)]
        self._unread = np.full(num_blocks, bool(sums))
        self.shape, self.ndim, self.dtype = rows_NE.shape, rows_NE.ndim, rows_NE.dtype

    def __len__(self) -> int:
        return len(self._rows_NE)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows of a slice without a step; IndexStoreError, naming them, for damaged ones."""
        start, stop, _ = rows.indices(len(self))
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            if self._unread[block] and not self._is_whole(block):
                raise IndexStoreError(f"{self._damage(block)}; build the index again")
            self._unread[block] = False
        return self._rows_NE[rows]

    def whole_blocks(self, told: list[str]) -> Iterator[tuple[slice, np.ndarray]]:
        """The blocks whose checksums agree; the others, a line each, are added to `told`."""
        for block in range(len(self._sums)):
            if self._is_whole(block):
                rows = self._slice(block)
                yield rows, self._rows_NE[rows]
            else:
                told.append(self._damage(block))

    def _is_whole(self, block: int) -> bool:
        return crc32(self._rows_NE[self._slice(block)]) == self._sums[block]

    def _slice(self, block: int) -> slice:
        return slice(block * BLOCK, min((block + 1) * BLOCK, len(self)))

    def _damage(self, block: int) -> str:
        rows = self._slice(block)
        return f"{self.path}: the vectors in rows {rows.start} to {rows.stop - 1} are damaged"
