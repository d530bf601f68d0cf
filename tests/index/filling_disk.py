"""Writes to an index on a small disk until it is full, again and again; run by
test_engine_lance_full_disk.py.

    python filling_disk.py FOLDER ROUNDS

FOLDER is the root of a small file system. In each round a file takes all but a few kilobytes of
it, and adds, updates, deletes and compactions go on until one is refused. What was acknowledged is
compared with what the index holds, the file is removed, and the refused write is done again.
Prints JSON with the counts; an assertion ends it.
"""

import json
import os
import random
import sys
import warnings
from pathlib import Path

from killing_writes import HashedWords, State, after, check, planned, write

from polyvec import Index
from polyvec.errors import CompactionWarning, IndexStoreError

BALLAST_LEAVES = (0, 4_000, 16_000, 64_000, 128_000)  # bytes


def fill(path: Path, leave: int) -> None:
    """A file that takes the disk but for so many bytes."""
    disk = os.statvfs(path.parent)
    with path.open("wb", buffering=0) as file:
        file.write(bytes(max(0, disk.f_bavail * disk.f_frsize - leave)))


def main(disk: Path, rounds: int) -> None:
    folder, ballast = disk / "index", disk / "ballast"
    Index.create(folder, HashedWords(16)).close()
    state: State = {}
    counts = dict.fromkeys(("rounds", "writes", "refused", "not compacted"), 0)
    chance = random.Random(0)
    for number in range(rounds):
        index = Index.open(folder, HashedWords(16))
        while len(state) < 20:  # so that every kind of write has something to do
            kind, rows = planned(state, chance)
            write(index, kind, rows)
            state = after(state, kind, rows)
        fill(ballast, BALLAST_LEAVES[number % len(BALLAST_LEAVES)])
        refused = None
        while refused is None:
            kind, rows = planned(state, chance)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", CompactionWarning)
                try:
                    write(index, kind, rows)
                except IndexStoreError as error:
                    assert "the disk is full; what was stored before is there" in str(error)
                    refused = kind, rows
                else:
                    state = after(state, kind, rows)
                    counts["writes"] += 1
            counts["not compacted"] += any(each.category is CompactionWarning for each in told)
        counts["refused"] += 1
        counts[f"refused {refused[0]}"] = counts.get(f"refused {refused[0]}", 0) + 1
        check(index, [state])
        index.close()
        index = Index.open(folder, HashedWords(16))  # on the disk that is still full
        check(index, [state])
        ballast.unlink()
        write(index, *refused)
        state = after(state, *refused)
        check(index, [state])
        index.close()
        counts["rounds"] += 1
    print(json.dumps({**counts, "rows": len(state)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
