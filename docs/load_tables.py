"""The tables of docs/serving.md on load, from docs/results/serve-load.json."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "serve-load.json"
NAMES = {
    "polyvec": "`polyvec serve`",
    "infinity": "infinity-emb",
    "plain": "FastAPI + sentence-transformers",
}


def load_table() -> str:
    """What each server holds within the limits, and what it does at twice its capacity."""
    if not RESULTS.exists():
        return "Not measured."
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    servers = {name: found["servers"][name] for name in NAMES if name in found["servers"]}
    deadline = found["deadline_s"]
    requests, cores = found["requests"], found["cores"]
    parts = [
        f"{found['cpu']}, {_cores(cores['server'])} for the server and {_cores(cores['client'])} "
        f"for the client; a request has {requests['texts']:.1f} texts and {requests['tokens']:.0f} "
        f"tokens on average. {_rounds(found['rounds'])}",
        _rows(
            "| server |"
            + "".join(
                f" requests/s with p95 within {limit} ms | polyvec's, times |"
                for limit in found["limits_ms"]
            )
            + " 32 clients in a closed loop: requests/s | texts/s | tokens/s | CPU ms a request |",
            [_capacity(name, each, found["ratios"].get(name)) for name, each in servers.items()],
        ),
        f"Twice the capacity for 60 s; an answer after {deadline} s is late, and no goodput:",
        _rows(
            "| server | arrivals/s | answered in time/s | tokens/s of these | p50 ms | p95 ms "
            "| p99 ms | 429 | late | no answer in twice the time | errors "
            "| memory first, most, last MiB |",
            [_overload(name, each) for name, each in servers.items() if each["overload"]],
        ),
    ]
    return "\n\n".join(parts)


def goodput_line() -> str:
    """polyvec's goodput at twice the capacity beside its most."""
    if not RESULTS.exists():
        return "Not measured."
    ours = json.loads(RESULTS.read_text("utf-8"))["servers"]["polyvec"]
    most, kept = ours["closed"], ours["overload"]
    if not kept:
        return "Twice the capacity: not measured."
    requests = kept["good_requests_s"], most["good_requests_s"]
    tokens = kept["good_tokens_s"], most["good_tokens_s"]
    return (
        f"At twice the capacity polyvec answers {requests[0]:.1f} requests/s in time, "
        f"{requests[1]:.1f} in the closed loop ({requests[0] / requests[1]:.0%}); as tokens/s "
        f"{tokens[0]:,.0f} of {tokens[1]:,.0f} ({tokens[0] / tokens[1]:.0%}): mostly long requests "
        "are refused."
    )


def _capacity(name: str, found: dict[str, Any], ratios: dict[str, Any] | None) -> list[str]:
    closed, cells = found["closed"], []
    for limit, row in found["highest"].items():
        times = ratios["at_equal_p95"][limit] if ratios else None
        lowest = found["p95_by_rate"][0][0]
        # Where no higher rate was tried the search was not finished.
        least = "at least " if row["rate"] >= found["p95_by_rate"][-1][0] - 0.1 else ""
        rounds = [f"{least}{each:.1f}" if each else f"below {lowest:.1f}" for each in row["rates"]]
        cells.append(", ".join(rounds))
        cells.append("" if times is None else f"{'at most ' if least else ''}{times:.2f}")
    return [
        NAMES[name],
        *cells,
        f"{closed['requests_s']:.1f}{_spread(found, 'closed', 'requests_s', '.1f')}",
        f"{closed['texts_s']:.1f}",
        f"{closed['tokens_s']:,.0f}{_spread(found, 'closed', 'tokens_s', ',.0f')}",
        f"{1000 * closed['server_cpu_s'] / closed['accepted']:.0f}",
    ]


def _overload(name: str, found: dict[str, Any]) -> list[str]:
    cell, memory = found["overload"], found["memory_mib"]
    return [
        NAMES[name],
        f"{cell['rate']:.1f}",
        f"{cell['good_requests_s']:.1f}{_spread(found, 'overload', 'good_requests_s', '.1f')}",
        f"{cell['good_tokens_s']:,.0f}{_spread(found, 'overload', 'good_tokens_s', ',.0f')}",
        *(
            f"{cell[key]:,.0f}{_spread(found, 'overload', key, ',.0f')}" if cell[key] else ""
            for key in ("p50_ms", "p95_ms", "p99_ms")
        ),
        *(f"{cell[key]:.0f}" for key in ("refused", "late", "timed_out", "errors")),
        ", ".join(f"{each:,.0f}" for each in (memory[0], max(memory), memory[-1])),
    ]


def _spread(found: dict[str, Any], kind: str, key: str, form: str) -> str:
    """The least and the most of the rounds, where there are several that differ."""
    least, most = found.get(f"{kind}_spread", {}).get(key, (0, 0))
    return "" if least == most else f" ({least:{form}} to {most:{form}})"


def _rounds(num: int) -> str:
    if num == 1:
        return "One round."
    return f"Medians of {num} rounds in which the servers take turns (the least to the most)."


def _rows(head: str, rows: list[list[str]]) -> str:
    columns = head.count("|") - 1
    lines = [head, "| --- |" + " ---: |" * (columns - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _cores(num: int) -> str:
    return "one core" if num == 1 else f"{num} cores"
