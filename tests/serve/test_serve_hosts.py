"""Names under which a server is asked: not those that a stranger has point at this machine."""

import argparse
import socket

import httpx
import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

from test_serve_http import error_of, running

from polyvec.cli import parser, serve

ROUTES = ("/", "/page.js", "/health", "/ready", "/metrics", "/docs", "/openapi.json", "/v1/models")


@pytest.fixture(scope="module")
def address(embedder):
    with running({"tiny": embedder}, hosts=("localhost", "vectors.example")) as found:
        yield found


@pytest.mark.parametrize(
    "name",
    ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:9", "[::1]:8000", "[::1]",
     "10.1.2.3:8", "vectors.example"],
)  # fmt: skip
def test_its_names_and_addresses_are_answered(address, name):
    with httpx.Client(base_url=address, headers={"Host": name}) as client:
        for path in ROUTES:
            assert client.get(path).status_code == 200
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
     "evil.example:80:80", "localhost@evil.example", "[::1].evil.example", "127.1", ""],
)  # fmt: skip
def test_other_names_are_refused_on_every_route(address, name):
    ask = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    with httpx.Client(base_url=address, headers={"Host": name}) as client:
        for path in (*ROUTES, "/nothing"):
            found = client.get(path)
            assert error_of(found, 403)["code"] == "host"
            assert "--allow-host" in found.text
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 403
        assert client.options("/v1/embeddings", headers=ask).status_code == 403


def test_a_request_has_one_name(address):
    for lines, status in (("", 400), ("Host: localhost\r\nHost: localhost\r\n", 400)):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            connection.sendall(f"GET /health HTTP/1.1\r\n{lines}\r\n".encode())
            assert connection.recv(12) == f"HTTP/1.1 {status}".encode()
            connection.close()
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_any_name_will_do_where_others_reach_the_port(embedder):
    with running({"tiny": embedder}) as address:
        assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 200


def test_what_the_command_line_takes():
    def names(address, *given):
        return serve._hosts(parser().parse_args(["serve", *given]), address)

    assert names("127.0.0.1") == ("localhost", "127.0.0.1")
    assert names("::1", "--host", "Cat.Local") == ("localhost", "cat.local")
    assert names("127.0.0.1", "--allow-host", "A.example.")[-1] == "a.example"
    assert names("0.0.0.0", "--host", "0.0.0.0") == (), "containers, behind names of any kind"
    named = ("--host", "0.0.0.0", "--allow-host", "a.example", "--allow-host", "b.example")
    assert names("0.0.0.0", *named) == ("localhost", "0.0.0.0", "a.example", "b.example")
    for wrong in ("http://a.example", "a.example:80", "", "*.example"):
        with pytest.raises((SystemExit, argparse.ArgumentError)):
            names("127.0.0.1", "--allow-host", wrong)
