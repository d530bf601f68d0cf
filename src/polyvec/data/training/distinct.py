"""Rows cut into batches without equal texts."""

import heapq
from collections import deque
from collections.abc import Iterable

import numpy as np

from polyvec.data.training.dataset import Texts

TRIES = 256  # whole batches that are asked to exchange a row for one that is left at the end
GIVE_UP = 64  # rows that no batch takes in exchange; then the rest is not tried


class Cut:
    """`batches` of the rows in their order, the last ones maybe smaller.

    A row whose text is in the batch already waits under that text. The next batches take waiting
    rows first, those with the longest queue before others. Rows that are left at the end are
    exchanged for rows of whole batches, so that they do not make many small ones.

    texts: of each row; None cuts the order as it is. num_moved: rows that had to wait.
    """

    def __init__(self, order: np.ndarray, size: int, texts: Texts | None) -> None:
        self.size, self.num_moved = size, 0
        self.batches: list[list[int]] = []
        if texts is None:
            self.batches = [
                order[start : start + size].tolist() for start in range(0, len(order), size)
            ]
            return
        self.texts = texts
        self.queues: dict[int, deque[int]] = {}
        self.heap: list[tuple[int, int, int]] = []  # (-length of the queue, tie, its text)
        self.tie = 0
        batch, seen = self._stream(order.tolist())
        self._finish(batch, seen)

    def _stream(self, rows: Iterable[int]) -> tuple[list[int], set[int]]:
        """Fill whole batches; what is left is a batch with its texts, and the queues."""
        batch: list[int] = []
        seen: set[int] = set()
        for row in rows:
            clash = self._offer(row, batch, seen)
            if clash is not None:
                self.num_moved += 1
                self._wait(clash, row)
            while len(batch) == self.size:
                self.batches.append(batch)
                batch, seen = [], set()
                self._take_waiting(batch, seen)
        return batch, seen

    def _finish(self, batch: list[int], seen: set[int]) -> None:
        """Put the waiting rows into whole batches as far as exchanges allow, then small ones."""
        left = [row for queue in self.queues.values() for row in queue]
        self.queues.clear()
        self.heap.clear()
        whole = list(self.batches)
        num_failed = 0
        for row in left:
            clash = self._offer(row, batch, seen)
            if clash is not None:
                other = self._exchanged(row, whole, seen) if num_failed < GIVE_UP else None
                if other is None:
                    num_failed += 1
                    self._wait(clash, row)
                    continue
                self._offer(other, batch, seen)
            if len(batch) == self.size:
                self.batches.append(batch)
                batch, seen = [], set()
        while batch or self.queues:
            self._take_waiting(batch, seen)
            self.batches.append(batch)
            batch, seen = [], set()

    def _exchanged(self, row: int, whole: list[list[int]], seen: set[int]) -> int | None:
        """Put the row into one of the last whole batches for a row that has no text in `seen`."""
        texts = self.texts.of(row)
        for batch in whole[: -TRIES - 1 : -1]:
            for place, other in enumerate(batch):
                if any(text in seen for text in self.texts.of(other)):
                    continue
                others = {text for each in batch if each != other for text in self.texts.of(each)}
                if any(text in others for text in texts):
                    break
                batch[place] = row
                return other
        return None

    def _offer(self, row: int, batch: list[int], seen: set[int]) -> int | None:
        """Add the row, or return a text of it that the batch has already."""
        texts = self.texts.of(row)
        clash = next((text for text in texts if text in seen), None)
        if clash is None:
            batch.append(row)
            seen.update(texts)
        return clash

    def _wait(self, text: int, row: int) -> None:
        self.queues.setdefault(text, deque()).append(row)
        self._push(text)

    def _push(self, text: int) -> None:
        self.tie += 1
        heapq.heappush(self.heap, (-len(self.queues[text]), self.tie, text))

    def _take_waiting(self, batch: list[int], seen: set[int]) -> None:
        """Move waiting rows into the batch: at most one under each text."""
        asked: set[int] = set()
        again: list[tuple[int, int]] = []
        while self.heap and len(batch) < self.size:
            length, _, text = heapq.heappop(self.heap)
            queue = self.queues.get(text)
            if queue is None or -length != len(queue) or text in asked:
                continue  # an entry from before the queue changed
            asked.add(text)
            row = queue.popleft()
            clash = self._offer(row, batch, seen)
            if clash is not None:
                again.append((clash, row))
        for text in asked:
            if self.queues[text]:
                self._push(text)
            else:
                del self.queues[text]
        for text, row in again:
            self._wait(text, row)
