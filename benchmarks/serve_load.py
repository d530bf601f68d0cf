"""`polyvec serve` under load, beside infinity and the server that people write first.

    python benchmarks/serve_load.py --data DATA --folder WORK [--infinity ENVIRONMENT]

Each server is a process of its own on a port of this machine, with all-MiniLM-L6-v2 on the CPU, on
all cores but one; the client has that one. Requests are texts of 4 to 256 tokens (log-uniform), one
in ten has 2 to 8 of them. By rounds in which the servers take turns:

    vectors    of the same texts are compared
    closed     32 clients that ask again at once: the capacity
    open       Poisson arrivals at rates 7 % apart: the highest whose p95 is within 250 or 500 ms,
               where a request that was refused or not answered counts as endless
    overload   Poisson arrivals at twice the capacity, for a minute

Figures are medians of the rounds, beside the least and the most of them. A cell is a file in
WORK/cells; a second run measures what is missing, so that `--rounds 1`, then `--rounds 2`, make a
round each. `--budget` ends a run after so many seconds, `--limits 500` searches at one limit alone.
Writes docs/results/serve-load.json, which docs/generate.py makes a table of.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import serve_load_client as clients
from index_kinds import cpu
from serve_load_client import Answer, Client, Request
from serve_load_servers import DEADLINE_S, Server, cores

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "serve-load.json"
SERVERS = ("polyvec", "infinity", "plain")
ROUNDS = 3
LIMITS_MS = (250, 500)
LOWEST, STEP = 0.657, 1.07  # rates are LOWEST * STEP**number, in requests a second
MOST_RATES = 6  # that a search for the highest tries at each limit
FEWEST_ARRIVALS, LONGEST_S = 150, 40.0  # low rates are measured for longer, for their p95
NUM_CLIENTS = 32
SECONDS = {"closed": 10.0, "open": 15.0, "overload": 60.0}
GIVE_UP_S = 2.0 * DEADLINE_S  # the client's deadline; an answer after DEADLINE_S is late
WARM_UP_S = 3.0
NUM_REQUESTS = 5000  # distinct; longer runs begin again


# ---- a cell -------------------------------------------------------------------------------------


def summary(answers: list[Answer], seconds: float) -> dict[str, Any]:
    """Counts, rates in the window of arrivals, and percentiles of accepted answers in ms."""
    accepted = [each for each in answers if each.status == 200]
    done = [each for each in accepted if each.arrived + each.seconds <= seconds]
    good = [each for each in done if each.seconds <= DEADLINE_S]
    # For the limit: who was refused or never answered has waited for ever.
    waited = [each.seconds if each.status == 200 else math.inf for each in answers]
    p95_all = float(np.quantile(waited, 0.95, method="higher")) if waited else math.inf
    return {
        "arrived": len(answers),
        "accepted": len(accepted),
        "refused": sum(each.status == 429 for each in answers),
        "late": sum(each.seconds > DEADLINE_S for each in accepted),
        "timed_out": sum(each.status == clients.TIMED_OUT for each in answers),
        "errors": sum(each.status not in (200, 429, clients.TIMED_OUT) for each in answers),
        "requests_s": len(done) / seconds,
        "texts_s": sum(each.texts for each in done) / seconds,
        "tokens_s": sum(each.tokens for each in done) / seconds,
        "good_requests_s": len(good) / seconds,
        "good_tokens_s": sum(each.tokens for each in good) / seconds,
        **{f"p{q}_ms": _percentile(accepted, q) for q in (50, 95, 99)},
        "p95_all_ms": None if math.isinf(p95_all) else 1000 * p95_all,
    }


def _percentile(answers: list[Answer], q: int) -> float | None:
    return 1000 * float(np.percentile([e.seconds for e in answers], q)) if answers else None


def seconds_of(kind: str, rate: float) -> float:
    """How long requests arrive."""
    if kind != "open":
        return SECONDS[kind]
    return min(max(SECONDS[kind], FEWEST_ARRIVALS / rate), LONGEST_S)


def measure(server: Server, kind: str, rate: float, requests: list[Request], seed: int) -> Any:
    """One cell: what came of the requests, and what the server's process used meanwhile."""
    seconds = seconds_of(kind, rate)

    async def run() -> list[Answer]:
        client = Client(server.port, GIVE_UP_S)
        try:
            if kind == "closed":
                return await clients.closed_loop(client, requests, NUM_CLIENTS, seconds)
            return await clients.open_loop(client, requests, rate, seconds, seed)
        finally:
            client.close()

    first, before, mine = len(server.samples), server.cpu_s(), time.process_time()
    began = time.perf_counter()
    answers = asyncio.run(run())
    spent = time.perf_counter() - began
    found = summary(answers, seconds)
    found |= {
        "rate": rate,
        "server_cpu_s": server.cpu_s() - before,
        "client_cpu_s": time.process_time() - mine,
        "wall_s": spent,
        "alive": server.alive,
        "memory": server.samples[first:],
        "answers": clients.rows(answers),
    }
    return found


# ---- which cells --------------------------------------------------------------------------------


class Cells:
    """Files of what was measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cells"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, server: str, turn: int, kind: str, number: int = 0) -> Path:
        return self.folder / f"{server}-{turn}-{kind}-{number}.json"

    def read(self, server: str, turn: int, kind: str) -> dict[int, dict[str, Any]]:
        """Cells of one kind by the number of their rate."""
        found = {}
        for path in sorted(self.folder.glob(f"{server}-{turn}-{kind}-*.json")):
            found[int(path.stem.rsplit("-", 1)[1])] = json.loads(path.read_text())
        return found

    def write(self, found: Any, server: str, turn: int, kind: str, number: int = 0) -> None:
        path = self.path(server, turn, kind, number)
        path.with_suffix(".part").write_text(json.dumps(found))
        path.with_suffix(".part").replace(path)


def tried(cells: dict[int, dict[str, Any]], limit_ms: int) -> dict[int, bool]:
    """Whether each rate held, by its number."""
    return {
        number: each["p95_all_ms"] is not None and each["p95_all_ms"] <= limit_ms
        for number, each in cells.items()
    }


def next_rate(found: dict[int, bool], start: int, step: int, most: int) -> int | None:
    """The number of the rate to try next, by steps until one holds and one fails; None once the
    highest that holds is between two, or `most` were tried."""
    if len(found) >= most:
        return None
    if not found:
        return start
    failed = [number for number, held in found.items() if not held]
    if not failed:
        return max(found) + step
    held = [number for number, ok in found.items() if ok and number < min(failed)]
    if not held:
        return max(min(failed) - step, 0) if min(failed) else None
    middle = (max(held) + min(failed)) // 2
    return None if middle == max(held) else middle


def highest(found: dict[int, bool]) -> int | None:
    """The number of the highest rate that held, with all that were tried below it."""
    failed = [number for number, held in found.items() if not held]
    held = [n for n, ok in found.items() if ok and n < min(failed, default=10**6)]
    return max(held, default=None)


def capacity(cells: Cells, server: str) -> float:
    """Requests a second of the closed loop, of the first round."""
    return float(cells.read(server, 0, "closed")[0]["requests_s"])


def missing(
    cells: Cells, server: str, turn: int, limits: list[int]
) -> tuple[str, int, float] | None:
    """Kind, number and rate of the next cell of a server in a round."""
    if not cells.read(server, turn, "closed"):
        return "closed", 0, 0.0
    half = max(0.5 * capacity(cells, server), LOWEST)
    for place, limit in enumerate(limits, 1):
        # The first round looks for the rate from afar, later ones beside the one that it found.
        first = highest(tried(cells.read(server, 0, "open"), limit)) if turn else None
        start = round(math.log(half / LOWEST, STEP)) if first is None else first
        found = tried(cells.read(server, turn, "open"), limit)
        number = next_rate(found, start, 3 if first is None else 1, MOST_RATES * place)
        if number is not None:
            return "open", number, LOWEST * STEP**number
    # The last, as it leaves work behind.
    if not cells.read(server, turn, "overload"):
        return "overload", 0, 2 * capacity(cells, server)
    return None


def run(
    cells: Cells,
    start: Callable[[str], Server],
    names: list[str],
    requests: list[Request],
    texts: list[str],
    limits: list[int],
    rounds: int,
    until: float,
) -> bool:
    """Measures what is missing, until all is there or the time is over."""
    for turn in range(rounds):
        for name in names:
            if missing(cells, name, turn, limits) is None:
                continue
            if time.monotonic() + 30 > until:
                return False
            # Of a server of its own: the batches are larger than later ones, and so is the memory.
            if not (vectors := cells.folder / f"{name}-vectors.npy").exists():
                with start(name) as server:
                    found = asyncio.run(clients.vectors_of(Client(server.port, 60.0), texts))
                np.save(vectors, found)
            with start(name) as server:
                warm = clients.closed_loop(Client(server.port, 60.0), requests, 8, WARM_UP_S)
                asyncio.run(warm)
                while (cell := missing(cells, name, turn, limits)) is not None:
                    kind, number, rate = cell
                    if time.monotonic() + seconds_of(kind, rate) + GIVE_UP_S > until:
                        return False
                    time.sleep(1.0)  # what the cell before left is answered
                    # The same requests in the same order at every rate of every server.
                    found = measure(server, kind, rate, requests, seed=turn + 1)
                    show(name, turn, kind, found)
                    cells.write(found, name, turn, kind, number)
    return True


def show(name: str, turn: int, kind: str, cell: dict[str, Any]) -> None:
    keys = ("rate", "requests_s", "good_tokens_s", "p50_ms", "p95_ms", "p99_ms", "server_cpu_s")
    numbers = " ".join(f"{key} {cell[key] or 0:.1f}" for key in keys)
    counts = " ".join(f"{key} {cell[key]}" for key in ("refused", "late", "timed_out", "errors"))
    print(f"{name} {turn} {kind}: {numbers} {counts}", flush=True)


# ---- results ------------------------------------------------------------------------------------


def collect(
    cells: Cells, names: list[str], requests: list[Request], limits: list[int], rounds: int
) -> dict[str, Any]:
    """What docs/results/serve-load.json holds."""
    tokens = [each.tokens for each in requests]
    found: dict[str, Any] = {
        "cpu": cpu(),
        "cores": {"server": len(cores()[0]), "client": len(cores()[1])},
        "requests": {
            "texts": sum(each.texts for each in requests) / len(requests),
            "tokens": sum(tokens) / len(tokens),
            "tokens_of_a_text": sum(tokens) / sum(each.texts for each in requests),
        },
        "rounds": rounds,
        "deadline_s": DEADLINE_S,
        "limits_ms": limits,
        "servers": {},
    }
    vectors = {name: np.load(cells.folder / f"{name}-vectors.npy") for name in names}
    for name in names:
        closed = [cells.read(name, turn, "closed")[0] for turn in range(rounds)]
        opened = [cells.read(name, turn, "open") for turn in range(rounds)]
        curve = [[each["rate"], each["p95_all_ms"]] for turn in opened for each in turn.values()]
        numbers = {limit: [highest(tried(turn, limit)) for turn in opened] for limit in limits}
        overload = [cells.read(name, turn, "overload")[0] for turn in range(rounds)]
        memory = max(([e["mib"] for e in each["memory"]] for each in overload), key=max)
        cosine_N = (vectors[name] * vectors["plain"]).sum(1) / (
            np.linalg.norm(vectors[name], axis=1) * np.linalg.norm(vectors["plain"], axis=1)
        )
        found["servers"][name] = {
            "lowest_cosine": float(cosine_N.min()),
            "closed": _median(closed),
            "closed_spread": _spread(closed),
            "highest": {limit: _highest(numbers[limit]) for limit in limits},
            "p95_by_rate": sorted(curve),
            "overload": _median(overload),
            "overload_spread": _spread(overload),
            "memory_mib": memory,
        }
    ours = found["servers"]["polyvec"]
    found["ratios"] = {
        name: {
            "at_equal_p95": {
                limit: ours["highest"][limit]["rate"] / row["rate"] if row["rate"] else None
                for limit, row in each["highest"].items()
            },
            "closed": ours["closed"]["requests_s"] / each["closed"]["requests_s"],
        }
        for name, each in found["servers"].items()
        if name != "polyvec"
    }
    return found


def _highest(numbers: list[int | None]) -> dict[str, Any]:
    rates = [0.0 if each is None else LOWEST * STEP**each for each in numbers]
    return {"rate": statistics.median(rates), "rates": rates}


def _median(cells: list[dict[str, Any]]) -> dict[str, float | None]:
    return {key: statistics.median(each) if each else None for key, each in _numbers(cells).items()}


def _spread(cells: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The least and the most of the rounds."""
    return {key: [min(each), max(each)] for key, each in _numbers(cells).items() if each}


def _numbers(cells: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What the rounds measured, by its name; none where a round has none."""
    return {
        key: [each[key] for each in cells] if all(each[key] is not None for each in cells) else []
        for key in cells[0]
        if key not in ("memory", "answers")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--infinity", type=Path, help="an environment that has infinity-emb")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds of this run")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--limits", nargs="+", type=int, choices=LIMITS_MS, default=list(LIMITS_MS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--write", action="store_true", help="measure nothing, write what is there")
    options = parser.parse_args()
    until = time.monotonic() + options.budget
    # So that the server ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    from polyvec.embed.formats.sources import offline_folder

    model = offline_folder()
    names = [each for each in options.servers if each != "infinity" or options.infinity]
    pool = clients.read_pool(options.data, model)
    requests = clients.make_requests(pool, NUM_REQUESTS, seed=0)
    texts = [each for length in sorted(pool) for each in pool[length][:1]]
    cells = Cells(options.folder)
    _, mine = cores()
    os.sched_setaffinity(0, mine)

    def start(name: str) -> Server:
        return Server(name, model, options.folder, options.infinity)

    limits, rounds = sorted(options.limits), options.rounds
    if not options.write and not run(cells, start, names, requests, texts, limits, rounds, until):
        print("more is to be measured: run this again")
        return
    found = collect(cells, names, requests, limits, rounds)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(RESULTS)


if __name__ == "__main__":
    main()
