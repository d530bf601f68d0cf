"""The vectors of `polyvec embed`, in the order of the texts, with those of an interrupted run.

N texts, E numbers a vector.
"""

import hashlib
import itertools
import json
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyvec.data.texts import Record
from polyvec.interfaces import CHUNK_SIZE, RunOptions
from polyvec.storage.vector_cache import Entries
from polyvec.storage.vector_files import Write

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder

CHUNK = 1024  # texts encoded before their vectors are kept: the most that a kill can cost


class Resumed:
    """Encodes texts and keeps each full chunk beside `output` until it is written.

    `asked` are the options of `encode` that decide a vector. Without an output nothing is kept.
    """

    def __init__(
        self, embedder: "Embedder", output: Path | None, asked: Mapping[str, Any], how: RunOptions
    ) -> None:
        self.embedder, self.asked, self.how = embedder, asked, how
        self.empty = embedder.encode([], **asked)
        self.folder = None if output is None else output.with_name(f".{output.name}.pending")
        self.entries: Entries | None = None
        if self.folder is not None:
            self.entries = Entries(self.folder / self._key(), self.empty.shape[1])
        self.num_known = len(self.entries) if self.entries is not None else 0
        self.num_written = 0
        # Texts that are read and not yet written, and whether their vectors are known.
        self._waiting: deque[tuple[Record, bool]] = deque()
        self._num_new = 0

    def write(self, records: Iterator[Record], write: Write) -> None:
        """All vectors through `write`, in order."""
        how = self.how
        if how.num_texts is not None:
            how = replace(how, num_texts=max(0, how.num_texts - self.num_known))
        chunks = self.embedder.encode_iter(
            self._new_texts(records, write),
            chunk_size=CHUNK_SIZE if self.entries is None else CHUNK,
            options=how,
            **self.asked,
        )
        for chunk in chunks:
            self._put(chunk)
            rows = iter(chunk)
            batch = []
            for _ in range(len(chunk)):
                while self._waiting[0][1]:
                    batch.append(self._waiting.popleft())
                batch.append(self._waiting.popleft())
            self._num_new -= len(chunk)
            self._write(batch, rows, write)
        self._write([*self._waiting], iter(()), write)
        self._waiting.clear()

    def clear(self) -> None:
        """Remove what was kept: the output is complete."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _new_texts(self, records: Iterator[Record], write: Write) -> Iterator[str]:
        """The texts without a known vector; known ones before the first of them are written."""
        for record in records:
            known = self.entries is not None and record.text in self.entries
            self._waiting.append((record, known))
            if not known:
                self._num_new += 1
                yield record.text
            elif self._num_new == 0 and len(self._waiting) >= CHUNK:
                self._write([*self._waiting], iter(()), write)
                self._waiting.clear()

    def _write(
        self, batch: list[tuple[Record, bool]], new: Iterator[np.ndarray], write: Write
    ) -> None:
        if not batch:
            return
        known = iter(self._known([record.text for record, is_known in batch if is_known]))
        rows_NE = np.stack([next(known if is_known else new) for _, is_known in batch])
        write([record.id for record, _ in batch], rows_NE.astype(self.empty.dtype, copy=False))
        self.num_written += len(batch)

    def _known(self, texts: list[str]) -> np.ndarray:
        """The kept vectors of texts; those of a damaged file are computed again."""
        found_NE = np.empty((len(texts), self.empty.shape[1]), self.empty.dtype)
        if not texts or self.entries is None:
            return found_NE
        hits = self.entries.get(texts)
        found_NE[hits.rows] = hits.vectors
        missing = np.setdiff1d(np.arange(len(texts)), hits.rows)
        if len(missing):
            again = [texts[row] for row in missing]
            found_NE[missing] = self.embedder.encode(again, **self.asked)
        return found_NE

    def _put(self, chunk_NE: np.ndarray) -> None:
        """Keep a chunk, unless it is the last one, which is written at once."""
        if self.entries is None or len(chunk_NE) < CHUNK:
            return
        new = (record.text for record, known in self._waiting if not known)
        row_of = {text: row for row, text in enumerate(itertools.islice(new, len(chunk_NE)))}
        # float32 holds all levels of integer vectors.
        self.entries.put(list(row_of), chunk_NE[list(row_of.values())])

    def _key(self) -> str:
        """What must be the same for vectors to be the same."""
        ranges = self.embedder.calibration
        described = [self.embedder.fingerprint(), sorted(self.asked.items(), key=lambda x: x[0])]
        if ranges is not None:
            described.append(ranges.ranges_2E.tolist())
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
