"""Kills a process that writes to an index, again and again; run by test_engine_lance_killed.py.

    python killing_writes.py FOLDER KILLS

Each process is a fork of this one, which never loads LanceDB itself (its threads survive no fork).
It compares what it finds with what was acknowledged, then adds, updates, deletes and compacts
until it is killed. Prints JSON with the counts; an assertion ends it.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# What LanceDB imports and a fork may share: it makes each process a second faster.
import lance_namespace  # noqa: F401
import pyarrow.dataset  # noqa: F401
import pydantic  # noqa: F401
import torch
from hashed_words import HashedWords

from polyvec import Index
from polyvec.data.texts import Record

torch.set_num_threads(1)
KINDS = ("add", "add", "update", "update", "delete", "compact")
WORDS = ["cat", "dog", "boat", "river", "code", "moon", "bread", "stone", "violin", "lamp"]
State = dict[str, tuple[str, int]]


def planned(state: State, chance: random.Random) -> tuple[str, dict[str, tuple[str, int]]]:
    """The next write: its kind, and the ids that it is about with what they become."""
    kind = chance.choice(KINDS) if len(state) > 20 else "add"
    some = chance.sample(sorted(state), 3) if kind in ("update", "delete") else []
    if kind == "add":
        some = [f"id-{chance.randrange(10**9)}" for _ in range(5)]
    text = lambda: " ".join(chance.sample(WORDS, 4))  # noqa: E731
    return kind, {name: (text(), chance.randrange(100)) for name in some}


def after(state: State, kind: str, rows: dict[str, tuple[str, int]]) -> State:
    """What the index holds once a write is there."""
    if kind == "delete":
        return {name: row for name, row in state.items() if name not in rows}
    return {**state, **rows}


def write(index: Index, kind: str, rows: dict[str, tuple[str, int]]) -> None:
    records = [Record(name, text, {"n": n}) for name, (text, n) in rows.items()]
    if kind == "delete":
        assert index.delete(list(rows)) == len(rows)
    elif kind == "compact":
        index.compact()
    else:
        getattr(index, kind)(records, show_progress_bar=False)


def check(index: Index, possible: list[State]) -> int:
    """Which of the possible states it is; queries give what belongs to it."""
    found = {record.id: (record.text, record.metadata["n"]) for record in index}
    assert found in possible, (len(found), [len(each) for each in possible])
    assert len(index) == len(found)
    for rows in index.engine.scan():  # the vectors, which are compared with their checksums
        assert len(rows.vectors["dense"]) == len(rows)
    for name, (text, _) in list(found.items())[:3]:
        (hits,) = index.search([text], top_k=len(found))
        assert {hit.id for hit in hits} == set(found)
        same = {other for other, (its, _) in found.items() if sorted(its) == sorted(text)}
        assert name in same and hits[0].score > 0.999
        (hits,) = index.search([text], mode="words", top_k=len(found))
        assert name in {hit.id for hit in hits}
    return possible.index(found)


def child(folder: Path, possible: list[State], seed: int, pipe: int) -> None:
    """Check, say which state it is, and write until it is killed: "s" starts, "a" acknowledges."""
    from polyvec.index.engines import lance

    lance.MAX_FRAGMENTS = 6  # so that kills meet the compaction of writes, too
    index = Index.open(folder, HashedWords(16))
    state = possible[number := check(index, possible)]
    os.write(pipe, b"%d" % number)
    chance = random.Random(seed)
    while True:
        kind, rows = planned(state, chance)
        os.write(pipe, b"s")
        write(index, kind, rows)
        os.write(pipe, b"a")
        state = after(state, kind, rows)


def main(folder: Path, kills: int) -> None:
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        Index.create(folder, HashedWords(16))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    possible: list[State] = [{}]
    counts = dict.fromkeys(("kills", "writes", "kept in flight", "lost in flight"), 0)
    counts |= dict.fromkeys(set(KINDS), 0)
    chance = random.Random(0)
    for seed in range(kills + 1):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                child(folder, possible, seed, writing)
            except BaseException as error:  # noqa: BLE001 - a fork must not go on as the parent
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os.close(writing)
        told = os.read(reading, 1)
        assert told.isdigit(), f"the check after kill {seed} failed"
        if len(possible) == 2:
            counts["kept in flight" if told == b"1" else "lost in flight"] += 1
        state = possible[int(told)]
        if seed < kills:
            # Some of the writes are acknowledged; then it is killed anywhere within the next one,
            # which takes about as long as those did.
            most, signs, first = chance.randrange(2, 20), b"", 0.0
            while signs.count(b"a") < most:
                signs += os.read(reading, 1)
                first = first or (time.perf_counter() if b"a" in signs else 0.0)
            time.sleep(chance.random() * 1.5 * (time.perf_counter() - first) / (most - 1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while part := os.read(reading, 4096):
            signs = signs + part if seed < kills else part
        os.close(reading)
        if seed == kills:
            break
        plan, plans = random.Random(seed), []
        for _ in range(signs.count(b"s")):
            plans.append(planned(state, plan))
            if len(plans) <= signs.count(b"a"):
                state = after(state, *plans[-1])
                counts["writes"] += 1
                counts[plans[-1][0]] += 1
        in_flight = len(plans) > signs.count(b"a")
        possible = [state, after(state, *plans[-1])] if in_flight else [state]
        counts["kills"] += 1
    print(json.dumps({**counts, "rows": len(state), "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
