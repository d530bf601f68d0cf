"""Malformed bodies by the thousand, slow clients, clients that read nothing, endless bodies."""

import asyncio
import contextlib
import json
import select
import socket
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

import httpx
from hostile_requests import hostile_requests
from test_serve_http import error_of, post, running

import polyvec
from polyvec.serve.app import create_app
from polyvec.serve.listening import listening
from polyvec.serve.settings import ServerSettings

# Of Python, of the library's files, and of the machine.
INSIDE = ("Traceback", "site-packages", ".py", str(Path(polyvec.__file__).parent), str(Path.home()))
KEY = "a-long-secret"


async def asked(app, path, headers, body):
    """Status, headers and content of an answer, without a socket."""
    given = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []

    async def receive():
        if not given:
            await asyncio.Event().wait()
        return given.pop()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"test"), *headers],
        "server": ("test", 80),
        "client": ("test", 1),
    }
    await app(scope, receive, send)
    start, *parts = sent
    content = b"".join(part.get("body", b"") for part in parts)
    return start["status"], dict(start["headers"]), content


async def all_asked(app, number, seed):
    """How many answers had each status; every answer is checked."""
    lifespan = app.app.router.lifespan_context(app.app)
    counts: dict[int, int] = {}
    good = json.dumps({"input": "a good request"}).encode()
    async with lifespan:
        while (await asked(app, "/v1/embeddings", [], good))[0] != 200:
            await asyncio.sleep(0.01)
        before = await asked(app, "/v1/embeddings", [], good)
        for sent in hostile_requests(number, seed):
            status, headers, content = await asked(app, *sent)
            counts[status] = counts.get(status, 0) + 1
            assert status < 500, (sent, content)
            assert headers[b"content-type"] == b"application/json"
            if status == 200:
                continue
            error = json.loads(content)["error"]
            assert set(error) == {"message", "type", "param", "code"}, (sent, content)
            assert isinstance(error["message"], str)
            assert len(content) < 25_000, sent
            assert not [each for each in INSIDE if each in content.decode()], (sent, content)
        after = await asked(app, "/v1/embeddings", [], good)
    assert before[2] == after[2]
    return counts


@pytest.mark.parametrize(
    ("number", "seed"),
    [
        pytest.param(500, 1, marks=pytest.mark.medium),
        pytest.param(10_000, 2, marks=pytest.mark.slow),
    ],
)
def test_no_malformed_body_is_answered_500(embedder, indexes, caplog, number, seed):
    app = create_app({"tiny": embedder}, ServerSettings(max_texts=200), indexes=indexes)
    with caplog.at_level("ERROR"):
        counts = asyncio.run(all_asked(app, number, seed))
    assert not caplog.records
    assert sum(counts.values()) == number
    assert counts[400] > 0.5 * number
    assert counts[200] > 0.01 * number, "some are harmless, or nothing is reached"
    assert counts.keys() <= {200, 400, 404, 413, 415}


# ---- over sockets -------------------------------------------------------------------------------

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"


def connected(address, timeout=20):
    return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout)


def read_to_end(connection):
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture(scope="module")
def address(embedder):
    with running({"tiny": embedder}, max_bytes=2**20) as found:
        yield found


def test_what_is_not_http_is_answered_with_the_error_object(address):
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
        b"FOO / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        HEAD + b"X\0: y\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        with connected(address) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            head, _, content = read_to_end(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 "), garbage
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"}
    assert post(address, {"input": "a"}).status_code == 200


def test_requests_behind_one_another_are_answered_in_order(address):
    body = json.dumps({"input": "a", "model": "absent"}).encode()
    one = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connected(address) as connection:
        connection.sendall(one * 20 + b"garbage\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        found = read_to_end(connection)
    assert found.count(b"HTTP/1.1 404 ") + found.count(b"HTTP/1.1 400 ") == found.count(
        b"HTTP/1.1 "
    )
    assert 1 <= found.count(b"HTTP/1.1 ") <= 21


@pytest.mark.medium
def test_some_hundred_malformed_requests_over_sockets(address):
    for sent in hostile_requests(300, 3):
        headers = [(name, value) for name, value in sent.headers if b"\0" not in value]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        length = b"Content-Length: %d\r\n" % len(sent.body)
        head = b"POST " + sent.path.encode() + b" HTTP/1.1\r\nHost: x\r\n" + lines + length
        with connected(address) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(head + b"Connection: close\r\n\r\n" + sent.body)
                connection.shutdown(socket.SHUT_WR)
            head, _, content = read_to_end(connection).partition(b"\r\n\r\n")
        status = int(head.split()[1]) if head else 400
        assert status < 500, (sent, content)
        assert not [each for each in INSIDE if each.encode() in content], (sent, content)
    assert post(address, {"input": "a"}).status_code == 200


@pytest.mark.medium
def test_slow_and_silent_clients_are_cut_off_while_others_are_answered(embedder, monkeypatch):
    monkeypatch.setattr("polyvec.serve.listening.HEAD_TIMEOUT", 1.0)
    monkeypatch.setattr("polyvec.serve.listening.WRITE_TIMEOUT", 1.0)
    head = HEAD + b"Content-Length: 100000\r\n"
    with running({"tiny": embedder}, body_timeout=1.0, api_keys=(KEY,)) as address:
        allowed = {"Authorization": f"Bearer {KEY}"}
        key = f"Authorization: Bearer {KEY}\r\n\r\n".encode()
        plans = {
            "silent": (b"", b""),
            "a byte of the headers at a time": (b"", head + b"X: " + b"y" * 1000),
            "a byte of the body at a time": (head + key, b"{" * 1000),
            "the same without a key": (head + b"\r\n", b"{" * 1000),
            "half open": (head + key + b"{", b""),
        }
        took = {}

        def drip(name, at_once, slowly):
            began = time.monotonic()
            with connected(address) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(at_once)
                connection.settimeout(0.05)
                for byte in slowly:
                    connection.sendall(bytes([byte]))
                    with contextlib.suppress(TimeoutError):
                        while connection.recv(1000):
                            pass
                        break
                connection.settimeout(20)
                read_to_end(connection)
            took[name] = time.monotonic() - began

        threads = [
            threading.Thread(target=drip, args=(name, *plan)) for name, plan in plans.items()
        ]
        for each in threads:
            each.start()
        time.sleep(0.3)
        assert post(address, {"input": "a"}, headers=allowed).status_code == 200
        for each in threads:
            each.join(30)
        assert took.keys() == plans.keys()
        assert max(took.values()) < 10, took


@pytest.mark.medium
def test_a_client_that_reads_nothing_is_cut_off(embedder, monkeypatch):
    # Shorter than the wait below, and longer than a busy machine keeps a slow reader waiting.
    monkeypatch.setattr("polyvec.serve.listening.WRITE_TIMEOUT", 2)

    def narrow(*where):
        at = listening(*where)
        at.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return at

    monkeypatch.setattr("test_serve_http.listening", narrow)
    content = json.dumps({"input": ["a b c"] * 2000}).encode()
    with running({"tiny": embedder}) as address:
        whole = len(post(address, content).content)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        time.sleep(5)
        assert len(read_to_end(connection)) < whole // 2
        connection.close()
        # Who reads slowly is not cut off.
        with httpx.stream("POST", f"{address}/v1/embeddings", content=content) as answer:
            found = b""
            for part in answer.iter_raw(50_000):
                found += part
                time.sleep(0.1)
        assert len(found) == whole


def memory():
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.medium
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_bodies_of_100_megabytes_take_no_memory(address):
    part = b"x" * 2**16
    most, before, statuses = [memory()], memory(), []

    def parts():
        for _ in range(1600):
            yield part
            most[0] = max(most[0], memory())

    def send(headers):
        answer = httpx.post(
            f"{address}/v1/embeddings", content=parts(), headers=headers, timeout=60
        )
        statuses.append(answer.status_code)

    declared = {"Content-Length": str(1600 * len(part))}
    threads = [
        threading.Thread(target=send, args=(headers,)) for headers in (declared, {}, declared, {})
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert statuses == [413] * 4
    assert most[0] - before < 40 * 2**20


def test_large_bodies_of_all_clients_together_have_a_bound(embedder):
    """Clients that hold a large body back are refused, small requests are still answered."""
    with running({"tiny": embedder}, max_bytes=10**6, body_timeout=20) as address:
        head = HEAD + b"Content-Length: 1000000\r\n\r\n"
        opened = []
        for _ in range(6):
            opened.append(connected(address))
            opened[-1].sendall(head + b" " * 900_000)
        time.sleep(0.5)
        answered, _, _ = select.select(opened, [], [], 10)
        assert [each.recv(12) for each in answered] == [b"HTTP/1.1 429"] * 2
        assert post(address, {"input": "a"}).status_code == 200
        for each in opened:
            each.close()
        deadline = time.monotonic() + 10
        statuses = [429]
        while statuses[-1] == 429 and time.monotonic() < deadline:
            statuses.append(post(address, b" " * 900_000 + b"{}").status_code)
        assert statuses[-1] == 400


def test_large_values_are_refused_at_once(address):
    """What once took minutes: a megabyte of token ids, of empty lists, of numbers, of one text."""
    for body, says in (
        (b'{"input": [' + b"5," * 450_000 + b"5]}", "Requested 450001 tokens, max 200000"),
        (b'{"input": [' + b"[5]," * 250_000 + b"[5]]}", "250001 texts, at most 2048"),
        (b'{"input": ' + b"9" * 900_000 + b"}", "not JSON"),
        (b'{"input": "' + b"a " * 450_000 + b'"}', "900000 characters, at most 64 tokens are read"),
        (b"{" + b",".join(b'"k%d":1' % n for n in range(80_000)) + b"}", "k0 is not a field"),
    ):
        began = time.process_time()
        assert says in error_of(post(address, body))["message"]
        assert time.process_time() - began < 3


def test_pages_of_other_origins_may_not_even_ask(address):
    """A form's content type needs no leave of CORS."""
    headers = {"Origin": "https://a.example", "Sec-Fetch-Site": "cross-site"}
    found = post(address, {"input": "a"}, headers={**headers, "Content-Type": "text/plain"})
    assert error_of(found, 403)["code"] == "origin"
    own = {"Origin": address, "Sec-Fetch-Site": "same-origin"}
    assert post(address, {"input": "a"}, headers=own).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert httpx.get(address, headers=link).status_code == 200


def test_an_old_client_can_read_why_it_was_refused(address):
    """HTTP/1.0 has no chunks, so an answer says how long it is; also one without a route."""
    for head in (b"Content-Encoding: gzip\r\n", b"Content-Length: 99999999\r\n"):
        with connected(address) as connection:
            connection.sendall(b"POST /v1/embeddings HTTP/1.0\r\n" + head + b"\r\n")
            connection.shutdown(socket.SHUT_WR)
            head, _, content = read_to_end(connection).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert f"content-length: {len(content)}".encode() in head
        assert json.loads(content)["error"]["type"] == "invalid_request_error"


def test_names_of_encodings_have_no_case(address):
    sent = {"input": "a"}
    assert post(address, sent, headers={"Content-Encoding": "Identity"}).status_code == 200
    assert post(address, sent, headers={"Content-Encoding": "GZIP"}).status_code == 415


def test_probes_may_ask_for_the_head_only(address):
    for path in ("/health", "/ready", "/metrics", "/"):
        found = httpx.head(address + path)
        assert found.status_code == 200
        assert not found.content
    assert httpx.head(f"{address}/v1/embeddings").status_code == 405


def test_odd_addresses_are_not_found(address):
    for path in ("/v1/embeddings/", "//v1/models", "/v1/models/../../etc/passwd", "/redoc", "/%00"):
        error_of(httpx.get(address + path), 405 if path == "/v1/embeddings/x" else 404)
    found = httpx.get(f"{address}/docs")
    assert "dimensions" in found.text
    assert "http" not in found.text.replace("<h2>", ""), "nothing from elsewhere"
    assert "default-src 'none'" in found.headers["content-security-policy"]
