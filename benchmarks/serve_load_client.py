"""The client of serve_load.py: texts of mixed length, and requests at times of its own.

In an open loop requests arrive as a Poisson process, whatever the server does, and an answer's time
counts from the arrival: a server that stalls is charged for all that came meanwhile. In a closed
loop so many clients ask one after another. Every request has a deadline.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SOURCES = (  # files below DATA, and the columns that hold texts
    ("stsb/train.jsonl.gz", ("sentence1",)),
    ("quora_pairs/test.jsonl.gz", ("question1",)),
    ("nfcorpus/queries.jsonl", ("text",)),
    ("scifact/queries.jsonl", ("text",)),
    ("squad11_dev/queries.jsonl.gz", ("text",)),
    ("squad11_dev/corpus.jsonl.gz", ("text",)),
    ("msmarco_trecdl_mini/corpus.jsonl.gz", ("text",)),
    ("scifact/corpus.jsonl.gz", ("text",)),
    ("imdb_sample/test.jsonl.gz", ("text",)),
)
FEWEST, MOST = 4, 256  # tokens of a text, with the two that the model adds
SEVERAL, MOST_TEXTS = 0.1, 8  # share of requests with 2 to 8 texts; the others have one
MOST_OPEN = 3000  # connections; an arrival beyond them is an error
NUM_ADDRESSES = 32  # that connections come from
IDLE_S = 2.0  # servers close connections that were idle for 5 s
TIMED_OUT, BROKEN = 0, -1  # in place of a status


@dataclass(frozen=True, slots=True)
class Request:
    """A request's body, and what is in it."""

    body: bytes
    texts: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request that arrived so many seconds after the beginning."""

    arrived: float
    seconds: float
    status: int
    texts: int
    tokens: int


# ---- texts --------------------------------------------------------------------------------------


def read_pool(data: Path, model: Path) -> dict[int, list[str]]:
    """Distinct texts of the sources by their number of tokens, FEWEST to MOST."""
    from tokenizers import Tokenizer

    from polyvec.data.texts import read_rows

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pool: dict[int, list[str]] = {}
    for name, columns in SOURCES:
        rows = [row for _, row in read_rows(data / name)][:3000]
        texts = dict.fromkeys(row[each] for row in rows for each in columns if row.get(each))
        for text, read in zip(texts, tokenizer.encode_batch(list(texts)), strict=True):
            if FEWEST <= len(read.ids) <= MOST:
                pool.setdefault(len(read.ids), []).append(text)
    return pool


def make_requests(pool: dict[int, list[str]], count: int, seed: int) -> list[Request]:
    """Requests of texts whose numbers of tokens are log-uniform."""
    draw = np.random.default_rng(seed)
    found = []
    lengths = np.array(sorted(pool))
    for _ in range(count):
        num = int(draw.integers(2, MOST_TEXTS + 1)) if draw.random() < SEVERAL else 1
        wanted = np.exp(draw.uniform(np.log(FEWEST), np.log(MOST), num))
        tokens = [int(lengths[np.abs(lengths - each).argmin()]) for each in wanted]
        texts = [pool[each][draw.integers(len(pool[each]))] for each in tokens]
        body = json.dumps({"model": "all-MiniLM-L6-v2", "input": texts if num > 1 else texts[0]})
        found.append(Request(body.encode(), num, sum(tokens)))
    return found


# ---- a connection -------------------------------------------------------------------------------


class Client:
    """Keeps connections to a server open. Written for this, as httpx takes 1 to 2 ms of the
    client's core for a request, and more with hundreds of connections."""

    def __init__(self, port: int, timeout_s: float) -> None:
        self.port, self.timeout_s = port, timeout_s
        self.num_open = self.num_opened = 0
        self.idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of an answer; TIMED_OUT or BROKEN in place of the status."""
        if self.num_open >= MOST_OPEN:
            return BROKEN, b""
        self.num_open += 1
        writer = None
        try:
            async with asyncio.timeout(self.timeout_s):
                reader, writer = await self._connection()
                writer.write(
                    b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                    % len(body)
                    + body
                )
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, found, rest = head.partition(b"content-length:")
                if not found:
                    raise ConnectionError("an answer without a length")
                content = await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
            if b"connection: close" in head:
                writer.close()
            else:
                self.idle.append((time.perf_counter(), reader, writer))
            return int(head.split(b" ", 2)[1]), content
        except (TimeoutError, OSError, EOFError) as error:
            if writer is not None:
                writer.close()
            return (TIMED_OUT if isinstance(error, TimeoutError) else BROKEN), b""
        finally:
            self.num_open -= 1

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self.idle:
            since, reader, writer = self.idle.pop()
            if time.perf_counter() - since < IDLE_S and not writer.is_closing():
                return reader, writer
            writer.close()
        # From many addresses of this machine, as requests stand for those of many clients, of whom
        # polyvec gives each a share of its queue.
        self.num_opened += 1
        own = f"127.0.0.{2 + self.num_opened % NUM_ADDRESSES}"
        return await asyncio.open_connection(
            "127.0.0.1", self.port, limit=2**20, local_addr=(own, 0)
        )

    def close(self) -> None:
        for _, _, writer in self.idle:
            writer.close()


# ---- loops --------------------------------------------------------------------------------------


async def open_loop(
    client: Client, requests: Sequence[Request], rate: float, seconds: float, seed: int
) -> list[Answer]:
    """Poisson arrivals, `rate` a second, for so many seconds; each is an answer of the list."""
    draw = np.random.default_rng(seed)
    gaps = draw.exponential(1 / rate, int(2 * rate * seconds) + 100)
    arrivals = [each for each in np.cumsum(gaps).tolist() if each < seconds]
    began = time.perf_counter()

    async def ask(arrived: float, request: Request) -> Answer:
        status, _ = await client.post(request.body)
        spent = time.perf_counter() - began - arrived
        return Answer(arrived, spent, status, request.texts, request.tokens)

    tasks = []
    for number, arrived in enumerate(arrivals):
        await asyncio.sleep(max(0.0, arrived - (time.perf_counter() - began)))
        request = requests[(seed * 997 + number) % len(requests)]
        tasks.append(asyncio.create_task(ask(arrived, request)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(
    client: Client, requests: Sequence[Request], num_clients: int, seconds: float
) -> list[Answer]:
    """Answers to clients that ask again as soon as they were answered."""
    began, found, numbers = time.perf_counter(), [], iter(range(10**9))

    async def ask() -> None:
        while (arrived := time.perf_counter() - began) < seconds:
            request = requests[next(numbers) % len(requests)]
            status, _ = await client.post(request.body)
            spent = time.perf_counter() - began - arrived
            found.append(Answer(arrived, spent, status, request.texts, request.tokens))
            if status != 200:
                await asyncio.sleep(0.05)  # a server that refuses at once is not hammered

    await asyncio.gather(*(ask() for _ in range(num_clients)))
    return found


async def vectors_of(client: Client, texts: Sequence[str]) -> np.ndarray:
    """Vectors [N, E] of a server, half of the texts alone and half by eights."""
    half = len(texts) // 2
    several = [list(texts[place : place + 8]) for place in range(half, len(texts), 8)]
    found: list[Any] = []
    for each in [*([text] for text in texts[:half]), *several]:
        body = json.dumps({"model": "all-MiniLM-L6-v2", "input": each}).encode()
        status, content = await client.post(body)
        if status != 200:
            raise ConnectionError(f"status {status}: {content[:200]!r}")
        found += [row["embedding"] for row in json.loads(content)["data"]]
    return np.array(found, np.float32)


def rows(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Answers as JSON holds them."""
    return [
        {**asdict(each), "arrived": round(each.arrived, 4), "seconds": round(each.seconds, 4)}
        for each in answers
    ]
