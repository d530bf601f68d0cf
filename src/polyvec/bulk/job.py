"""A process of a job: takes shards that nobody works on, until all are done."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polyvec.bulk.leases import STALE, leased
from polyvec.bulk.plan import DONE, FORMAT, LEASES, MANIFEST, Plan, Shard, input_files
from polyvec.data.parts import read_part
from polyvec.data.texts import Record
from polyvec.errors import DataError
from polyvec.interfaces import EncodeReport, RunOptions, TextEncoder
from polyvec.storage.checksums import file_crc32
from polyvec.storage.files import atomic_file
from polyvec.storage.vector_files import vector_file

CHUNK = 4096  # texts whose vectors are held at a time
PAUSE = 1.0  # seconds before another look at what others work on


@dataclass(frozen=True, slots=True)
class Done:
    """A finished shard."""

    rows: int
    bytes: int
    crc32: str
    truncated: int = 0
    tokens: int = 0


@dataclass(slots=True)
class Job:
    """The work on a plan in a folder; several processes may have one each.

    asked: options of `encode_iter`. columns: of the texts and their ids. advance: told of rows as
    they are done, by whomever.
    """

    plan: Plan
    source: Path
    folder: Path
    embedder: TextEncoder
    asked: Mapping[str, Any] = field(default_factory=dict)
    options: RunOptions = field(default_factory=RunOptions)
    columns: Mapping[str, str | None] = field(default_factory=dict)
    advance: Callable[[int], None] = lambda rows: None
    stale: float = STALE
    _counted: set[str] = field(default_factory=set)

    def run(self) -> int:
        """Work until every shard is done, and write the manifest; the rows embedded here."""
        for name in (DONE, LEASES):
            (self.folder / name).mkdir(exist_ok=True)
        made = 0
        while missing := self._missing():
            before = made
            for shard in missing:
                made += self._take(shard)
            if made == before and self._missing():
                time.sleep(PAUSE)  # others work on the rest, or have died on it
        self._write_manifest()
        return made

    def embed(self, shard: Shard) -> Done:
        """Embed one shard, whoever else may: its file and what is said of it appear whole."""
        path = self.folder / shard.name
        records = self._records(shard)
        report = EncodeReport()
        chunks = self.embedder.encode_iter(
            [record.text for record in records],
            chunk_size=CHUNK,
            options=self.options,
            report=report,
            **self.asked,
        )
        start = 0
        with vector_file(path) as write:
            for chunk in chunks:
                ids = [record.id for record in records[start : start + len(chunk)]]
                write(ids, chunk)
                start += len(chunk)
        done = Done(
            len(records),
            path.stat().st_size,
            file_crc32(path),
            report.num_truncated,
            report.num_tokens,
        )
        with atomic_file(self._done_file(shard), "w") as file:
            json.dump(asdict(done), file)
        return done

    def done(self, shard: Shard) -> Done | None:
        """What is said of a shard, if it is done and its file is there, of that size."""
        try:
            found = Done(**json.loads(self._done_file(shard).read_text("utf-8")))
            is_there = (self.folder / shard.name).stat().st_size == found.bytes
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return found if is_there else None

    def _take(self, shard: Shard) -> int:
        if self.done(shard) is not None:
            self._count(shard)
            return 0
        lease = self.folder / LEASES / f"{shard.name}.lease"
        with leased(lease, stale=self.stale) as is_ours:
            # Another may have finished it between the look and the lease.
            if not is_ours or self.done(shard) is not None:
                return 0
            rows = self.embed(shard).rows
        self._count(shard)
        return rows

    def _missing(self) -> list[Shard]:
        found = []
        for shard in self.plan.shards:
            if shard.name in self._counted:
                continue
            if self.done(shard) is None:
                found.append(shard)
            else:
                self._count(shard)
        return found

    def _count(self, shard: Shard) -> None:
        if shard.name not in self._counted:
            self._counted.add(shard.name)
            self.advance(shard.part.rows)

    def _records(self, shard: Shard) -> list[Record]:
        path = input_files(self.source)[shard.file]
        found = list(read_part(path, shard.part, **self.columns))
        if self.source.is_dir():
            found = [Record(f"{shard.file}:{each.id}", each.text) for each in found]
        return found

    def _done_file(self, shard: Shard) -> Path:
        return self.folder / DONE / f"{shard.name}.json"

    def _write_manifest(self) -> None:
        """Every process writes the same one."""
        shards = []
        for shard in self.plan.shards:
            done = self.done(shard)
            if done is None:
                raise DataError(f"{self.folder / shard.name}: was changed; run the command again")
            shards.append({"name": shard.name, "file": shard.file, **asdict(done)})
        manifest = {
            "format": FORMAT,
            **self.plan.how,
            "rows": self.plan.num_rows,
            "truncated": sum(each["truncated"] for each in shards),
            "tokens": sum(each["tokens"] for each in shards),
            "shards": shards,
        }
        with atomic_file(self.folder / MANIFEST, "w") as file:
            json.dump(manifest, file, indent=1, ensure_ascii=False)
