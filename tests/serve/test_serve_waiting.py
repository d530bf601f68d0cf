"""Requests that wait: until their time is over, while their client is there, beside others."""

import contextlib
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

import httpx
from test_serve_http import error_of, post, running

from polyvec.index.store import Index
from polyvec.serve.indexes import MOST_WAITING, THREADS

KEYS = ("the-greedy-one", "the-small-one")
SEARCH = {"query": "a cat"}
RERANK = {"query": "a cat", "documents": ["a river", "a cat"]}


class Held:
    """A method that waits in its thread until it is let go."""

    def __init__(self, monkeypatch, kind, name):
        self.calls, self.go = 0, threading.Event()
        work = getattr(kind, name)

        def held(*given, **options):
            self.calls += 1
            assert self.go.wait(30)
            return work(*given, **options)

        monkeypatch.setattr(kind, name, held)


def until(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def counted(address, what):
    """The number of a line of the metrics; 0 without one."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(what))


def asking(address, path, body, times=1, key=KEYS[0]):
    """Threads that ask, and the statuses of their answers."""
    statuses = []
    headers = {"Authorization": f"Bearer {key}"}

    def ask():
        statuses.append(post(address, body, path, headers=headers).status_code)

    threads = [threading.Thread(target=ask) for _ in range(times)]
    for each in threads:
        each.start()
    return threads, statuses


def hang_up(address, path, body):
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(address + path, json=body, timeout=0.3)
    what = f'polyvec_requests_total{{route="{path}",status="499"}}'
    until(lambda: counted(address, what) == 1)


def test_a_search_is_answered_or_refused_in_time(embedder, indexes, monkeypatch):
    with running({"tiny": embedder}, indexes=indexes, timeout=0.3) as address:
        held = Held(monkeypatch, Index, "search")
        threads, statuses = asking(address, "/v1/search", SEARCH, times=THREADS + 2)
        for each in threads:
            each.join()
        assert statuses == [429] * (THREADS + 2)
        assert held.calls == THREADS, "what still waits then is not begun"
        found = post(address, SEARCH, "/v1/search")
        assert error_of(found, 429)["message"] == "not answered in 0.3 s; try later"
        assert found.headers["retry-after"] == "1"
        held.go.set()
        until(lambda: post(address, SEARCH, "/v1/search").status_code == 200)


def test_a_search_is_not_begun_for_a_client_that_hung_up(embedder, indexes, monkeypatch):
    with running({"tiny": embedder}, indexes=indexes) as address:
        held = Held(monkeypatch, Index, "search")
        threads, statuses = asking(address, "/v1/search", SEARCH, times=THREADS)
        until(lambda: held.calls == THREADS)
        hang_up(address, "/v1/search", SEARCH)
        held.go.set()
        for each in threads:
            each.join()
        assert statuses == [200] * THREADS
        assert held.calls == THREADS


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/rerank", RERANK), ("/v1/embeddings", {"input": "a"})]
)
def test_what_a_model_computes_is_refused_in_time(embedder, monkeypatch, path, body):
    with running({"tiny": embedder}, timeout=0.5) as address:
        held = Held(monkeypatch, type(embedder), "encode_tokens")
        found = post(address, body, path)
        assert error_of(found, 429)["message"] == "not answered in 0.5 s; try later"
        held.go.set()
        until(lambda: post(address, body, path).status_code == 200)


def test_documents_of_a_client_that_hung_up_are_not_computed(embedder, monkeypatch):
    with running({"tiny": embedder}) as address:
        held = Held(monkeypatch, type(embedder), "encode_tokens")
        threads, statuses = asking(address, "/v1/embeddings", {"input": "a"})
        until(lambda: held.calls == 1)
        hang_up(address, "/v1/rerank", RERANK)
        held.go.set()
        for each in threads:
            each.join()
        assert statuses == [200]
        assert post(address, {"input": "a"}).status_code == 200
        assert held.calls == 2


@pytest.mark.medium
def test_a_greedy_client_leaves_room_for_the_searches_of_another(embedder, indexes, monkeypatch):
    share = MOST_WAITING // 2
    with running({"tiny": embedder}, indexes=indexes, api_keys=KEYS) as address:
        held = Held(monkeypatch, Index, "search")
        threads, statuses = asking(address, "/v1/search", SEARCH, times=share + 3)
        until(lambda: statuses == [429] * 3)
        small, answers = asking(address, "/v1/search", SEARCH, key=KEYS[1])
        held.go.set()
        for each in threads + small:
            each.join()
        assert answers == [200]
        assert statuses == [429] * 3 + [200] * share


@pytest.mark.medium
def test_a_greedy_client_leaves_room_for_the_texts_of_another(embedder, monkeypatch):
    """Its 40 requests are refused at half of the queue; the other's is in the next batch."""
    body = {"input": "a b c d e f g h"}  # 10 tokens
    settings = {"max_queued_tokens": 200, "max_batch_tokens": 20, "api_keys": KEYS}
    with running({"tiny": embedder}, **settings) as address:
        held = Held(monkeypatch, type(embedder), "encode_tokens")
        first, _ = asking(address, "/v1/embeddings", body)
        until(lambda: held.calls == 1)
        threads, statuses = asking(address, "/v1/embeddings", body, times=40)
        until(lambda: len(statuses) == 30)
        assert statuses == [429] * 30
        small, answers = asking(address, "/v1/embeddings", body, key=KEYS[1])
        until(lambda: counted(address, "polyvec_queued_tokens") == 120)
        held.go.set()
        for each in small:
            each.join()
        assert answers == [200]
        for each in first + threads:
            each.join()
        assert statuses == [429] * 30 + [200] * 10
