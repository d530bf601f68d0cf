"""Indexes in a server: search, and a map of the texts.

N texts, M of them on a map.
"""

import asyncio
import dataclasses
import re
from collections import Counter
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyvec.cluster.projection import plane
from polyvec.errors import InputError
from polyvec.index.filters import check_fields, read_filter
from polyvec.index.records import Hit
from polyvec.index.store import Index
from polyvec.interfaces import TextEncoder
from polyvec.serve.batching import OverloadedError
from polyvec.serve.reading import TextError

MOST_POINTS = 5000
MOST_CHARACTERS = 240  # of a text on a map
MOST_WAITING = 64  # searches that wait for one another
THREADS = 2


@dataclass(eq=False)
class ServedIndex:
    """An index under a name, and the model that made it."""

    name: str
    index: Index
    embedder: TextEncoder
    share: float = 1.0  # of the searches that wait, those of one client at most
    _waiting: Counter[Hashable] = field(default_factory=Counter)  # by client
    _map: dict[str, Any] | None = None
    _pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(THREADS, thread_name_prefix="polyvec-search")
    )
    _making: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.index.check(self.embedder)

    def card(self) -> dict[str, Any]:
        """What it is, for a list."""
        made = self.index.description
        return {
            "id": self.name,
            "object": "index",
            "texts": len(self.index),
            "model": made.model,
            "dimensions": dict(made.dimensions),
            "fields": dict(made.fields),
        }

    def check_filter(self, given: str | dict[str, Any] | None, field: str) -> None:
        """Raises TextError, of this field of the request, for a filter that the index refuses."""
        try:
            if (found := read_filter(given)) is not None:
                check_fields(found, self.index.description.fields)
        except InputError as error:
            raise TextError(None, re.sub("^filter:? ", "", str(error)), field) from None

    async def search(
        self, query: str, *, client: Hashable = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Hits as plain values; errors are those of `Index.search`, and OverloadedError.

        client: who asks; without one there is no share. A search that is cancelled while it waits
        is not done.
        """
        waiting, own = self._waiting.total(), self._waiting[client]
        share = max(1, int(self.share * MOST_WAITING))
        if waiting >= MOST_WAITING or (client is not None and own >= share):
            raise OverloadedError(
                f"{waiting} searches wait, {own} of them yours; at most {MOST_WAITING} may, "
                f"{share} of one client; try later",
                1.0,
            )
        self._waiting[client] += 1
        try:
            hits = await self._run(lambda: self._search(query, options))
        finally:
            self._waiting[client] -= 1
            self._waiting += Counter()  # forgets whom nothing waits for
        return [_plain(hit) for hit in hits]

    async def map(self, colour_by: str | None) -> dict[str, Any]:
        """Places of the texts in a square, and their values of a field of the metadata."""
        async with self._making:
            total = await self._run(lambda: len(self.index))
            if self._map is None or self._map["total"] != total:
                self._map = await self._run(lambda: self._made_map(total))
        made = self._map
        shown = {key: made[key] for key in ("x", "y", "id", "text", "how", "total")}
        values = [None if colour_by is None else each.get(colour_by) for each in made["metadata"]]
        return {**shown, "value": values}

    def close(self) -> None:
        """Ends its threads, and lets go of the place."""
        self._pool.shutdown(wait=True)
        self.index.close()

    async def _run(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _search(self, query: str, options: dict[str, Any]) -> list[Hit]:
        try:
            (hits,) = self.index.search([query], self.embedder, truncate="error", **options)
        except InputError as error:
            if (message := str(error)).startswith("inputs[0] has "):
                length = message.removeprefix("inputs[0] has ").partition(";")[0]
                raise TextError(None, f"{length}; shorten it", "query") from None
            raise
        return hits

    def _made_map(self, total: int) -> dict[str, Any]:
        if set(self.index.description.dimensions) != {"dense"}:
            raise InputError(f"{self.name}: its vectors are not dense, so there is no map of them")
        draw = np.random.default_rng(0)
        chosen = set(draw.permutation(total)[:MOST_POINTS].tolist())
        vectors, rows, at = [], [], 0
        for part in self.index.engine.scan():
            places = [place for place in range(len(part)) if at + place in chosen]
            vectors.append(part.vectors["dense"].to_dense()[places])
            rows += [(part.ids[i], part.texts[i], dict(part.metadata[i])) for i in places]
            at += len(part)
        if len(rows) < 2:
            raise InputError(f"{self.name}: fewer than two texts make no map")
        places_M2, how = plane(np.concatenate(vectors))
        return {
            "x": np.round(places_M2[:, 0], 4).tolist(),
            "y": np.round(places_M2[:, 1], 4).tolist(),
            "id": [name for name, _, _ in rows],
            "text": [" ".join(text.split())[:MOST_CHARACTERS] for _, text, _ in rows],
            "metadata": [metadata for _, _, metadata in rows],
            "how": how,
            "total": total,
        }


def _plain(hit: Hit) -> dict[str, Any]:
    found = {
        "id": hit.id,
        "score": float(hit.score),
        "text": hit.text,
        "metadata": dict(hit.metadata),
    }
    if hit.explanation is not None:
        found["explanation"] = dataclasses.asdict(hit.explanation)
    return found
