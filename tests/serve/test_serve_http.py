"""The server over a real socket: OpenAI's client, odd requests, limits, keys, metrics."""

import base64
import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

import httpx

from polyvec import Embedder
from polyvec.errors import InputError, ModelError, ServiceError
from polyvec.serve.app import create_app
from polyvec.serve.listening import TimedProtocol, listening, server_of
from polyvec.serve.settings import ServerSettings

TEXTS = ["a cat sleeps", "the stock market fell", "ein Text mit Ümläuten 日本"]


@contextlib.contextmanager
def running(models, indexes=None, **settings):
    """The address of a server in a thread."""
    server = server_of(create_app(models, ServerSettings(**settings), indexes=indexes))
    at = listening("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{at.getsockname()[1]}"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/ready").status_code == 200:
                break
        time.sleep(0.02)
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def address(embedder):
    with running({"tiny": embedder}, max_texts=50, max_bytes=200_000) as found:
        yield found


def post(address, body, path="/v1/embeddings", **options):
    content = body if isinstance(body, bytes | str) else json.dumps(body)
    return httpx.post(address + path, content=content, timeout=30, **options)


def error_of(response, status=400):
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert "\n" not in found["message"]
    return found


def test_the_client_of_openai_gets_the_models_vectors(address, embedder):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    expected = embedder.encode(TEXTS)
    for how in ({}, {"encoding_format": "float"}):  # base64 unless it is told otherwise
        found = client.embeddings.create(model="tiny", input=TEXTS, **how)
        vectors = np.array([each.embedding for each in found.data])
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
        assert [each.index for each in found.data] == [0, 1, 2]
        assert found.usage.prompt_tokens == found.usage.total_tokens > 6
    short = client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=8).data[0].embedding
    cut = expected[0, :8] / np.linalg.norm(expected[0, :8])
    np.testing.assert_allclose(short, cut, atol=1e-6)
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'gpt' is not here"):
        client.embeddings.create(model="gpt", input="a")
    with pytest.raises(openai.BadRequestError, match="dimensions is 99"):
        client.embeddings.create(model="tiny", input="a", dimensions=99)


def test_our_own_client_gets_the_models_vectors(address, embedder, tmp_path):
    """More texts than the server takes at once: it learns to send fewer."""
    model = Embedder.from_pretrained(f"{address}/v1#tiny", cache=tmp_path)
    texts = [f"{text} {number}" for number in range(50) for text in TEXTS]
    np.testing.assert_allclose(model.encode(texts), embedder.encode(texts), atol=1e-6)
    assert model.get_embedding_dimension() == embedder.get_embedding_dimension()
    assert model.usage.prompt_tokens > 3 * len(texts)
    with pytest.raises(ServiceError, match=r"inputs\[1\] .*too much for one request.*split it"):
        model.encode(["a cat", "word " * 5000])
    with pytest.raises(ServiceError, match="'gpt' is not here"):
        Embedder.from_pretrained(f"{address}/v1#gpt", cache=tmp_path).encode("a cat")


def test_base64_is_little_endian_float32(address, embedder):
    found = post(address, {"input": TEXTS[0], "encoding_format": "base64"}).json()
    vector = np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, embedder.encode(TEXTS[0]), atol=1e-6)


def test_token_ids_are_the_models_own(address, embedder):
    ids = embedder.text_tokenizer.hf(TEXTS[:2]).input_ids
    for given, texts in ((ids, TEXTS[:2]), (ids[0], TEXTS[:1])):
        data = post(address, {"input": given}).json()["data"]
        np.testing.assert_allclose(
            [each["embedding"] for each in data], embedder.encode(texts), atol=1e-6
        )
    found = error_of(post(address, {"input": [101, 100_256]}))
    assert "check_embedding_ctx_length=False" in found["message"]


def test_answers_say_how_long_each_part_took(address):
    response = post(address, {"input": "a cat"})
    for name in ("tokenization", "queue", "inference", "total"):
        assert float(response.headers[f"x-{name}-time"]) >= 0
    assert len(response.headers["x-request-id"]) == 16


def test_documents_are_ranked_by_similarity(address, embedder):
    body = {"query": "cat", "documents": [*TEXTS, {"text": "cat"}], "top_n": 2}
    found = post(address, {**body, "return_documents": True}, "/v1/rerank").json()
    query, documents = embedder.encode_query("cat"), embedder.encode_document([*TEXTS, "cat"])
    scores = documents @ query
    assert [each["index"] for each in found["results"]] == np.argsort(-scores)[:2].tolist()
    assert found["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    assert found["results"][0]["document"] == {"text": "cat"}


def test_tokens_are_those_that_the_model_reads(address, embedder):
    (found,) = post(address, {"input": "a kitten"}, "/tokenize").json()["data"]
    assert found["tokens"] == ["[CLS]", "a", "kitten", "[SEP]"]
    assert found["ids"] == embedder.text_tokenizer.hf("a kitten").input_ids


def test_long_texts_are_refused_unless_the_request_says_cut(address, embedder):
    for number, says in (
        (500, "502 tokens, the model reads 64"),
        (20_000, "100000 characters, at most 64 tokens are"),
    ):
        found = error_of(post(address, {"input": ["a", "word " * number]}))
        assert found["message"].startswith(f"input[1]: {says}")
    long = "word " * 20_000
    response = post(address, {"input": ["a", long], "truncate": True})
    assert response.headers["x-truncated-texts"] == "1"
    expected = embedder.encode(["a", long], truncate="silent")
    vectors = [each["embedding"] for each in response.json()["data"]]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON|Input should be an object"),
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'{"input": "a"} x', "not JSON"),
        (b'{"input": NaN}', "not JSON"),
        (b'{"input": "\\ud800"}', "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b'{"input": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "JSON"),
        ({}, "input"),
        ({"input": None}, "expected a string"),
        ({"input": 3}, "expected a string"),
        ({"input": True}, "expected a string"),
        ({"input": []}, "expected a string"),
        ({"input": [[]]}, "expected a string"),
        ({"input": ["a", 3]}, "expected a string"),
        ({"input": [True]}, "expected a string"),
        ({"input": [-1]}, "expected a string"),
        ({"input": [2**80]}, "expected a string"),
        ({"input": {"text": "a"}}, "expected a string"),
        ({"input": ""}, r"input\[0\]: the text is empty"),
        ({"input": ["a", " \n"]}, r"input\[1\]: the text is empty"),
        ({"input": "a", "prompt": "b", "prompt_name": "c"}, "exclude one another"),
        ({"input": "a", "a\nb\x1b": 1}, r"'a\\nb\\x1b' is not a field"),
        ({"input": [5, 101]}, "not what the model's tokenizer makes"),
        ({"input": ["a"] * 51}, "51 texts, at most 50"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": "8"}, "dimensions"),
        ({"input": "a", "dimensions": 2**70}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimension": 8}, "dimension is not a field"),
        ({"input": "a", "input_type": "passage"}, "input_type"),
        ({"input": "a", "prompt_name": "absent"}, "absent"),
        ({"input": "a", "prompt": "x " * 3000}, "prompt"),
        ({"input": "a", "truncate": "yes"}, "truncate"),
        ({"input": "a", "dimensions": 10**400}, "^dimensions: Input should be less than"),
        ({"input": "a", "model": 3}, "model"),
    ],
)
def test_a_wrong_request_is_one_clear_line(address, body, says):
    import re

    assert re.search(says, error_of(post(address, body))["message"])


def test_other_routes_refuse_alike(address):
    assert "dense vectors" in error_of(post(address, {"input": "a"}, "/v1/sparse"))["message"]
    error_of(post(address, {"query": "a"}, "/v1/rerank"))
    error_of(post(address, {"query": "a", "documents": []}, "/v1/rerank"))
    error_of(post(address, {"query": "a", "documents": [3]}, "/v1/rerank"))
    assert (
        error_of(post(address, {"query": "", "documents": ["a"]}, "/v1/rerank"))["param"] == "query"
    )
    found = error_of(post(address, {"query": "a", "documents": ["b", ""]}, "/v1/rerank"))
    assert found["message"].startswith("documents[1]: ")
    assert found["param"] == "documents"
    found = error_of(post(address, {"query": "a", "documents": ["b"] * 51}, "/v1/rerank"))
    assert "51 texts, at most 50" in found["message"]
    error_of(httpx.get(f"{address}/nothing/../here"), 404)
    error_of(httpx.get(f"{address}/v1/embeddings"), 405)
    error_of(httpx.get(f"{address}/v1/models/{'x' * 500}"), 404)
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}


def test_a_body_that_is_too_large_is_not_read(address):
    found = error_of(post(address, b"x" * 300_000), 413)
    assert found["code"] == "request_too_large"

    def parts():
        for _ in range(1000):
            yield b"x" * 1000

    assert httpx.post(f"{address}/v1/embeddings", content=parts()).status_code == 413


def test_metrics_count_without_texts(address):
    post(address, {"input": "a very special word"})
    page = httpx.get(f"{address}/metrics").text
    assert 'polyvec_requests_total{route="/v1/embeddings",status="200"}' in page
    assert 'polyvec_tokens_total{model="tiny"}' in page
    assert 'polyvec_padding_tokens_total{model="tiny"} 0.0' in page
    assert "special" not in page
    assert 'here"' not in page


def test_openapi_describes_the_requests(address):
    found = httpx.get(f"{address}/openapi.json").json()
    assert {"/v1/embeddings", "/v1/rerank", "/v1/sparse", "/tokenize"} <= set(found["paths"])
    body = found["paths"]["/v1/embeddings"]["post"]["requestBody"]
    assert set(body["content"]["application/json"]["schema"]["properties"]) >= {"input", "model"}


def test_keys_are_asked_for_and_probes_are_free(embedder):
    with running({"tiny": embedder}, api_keys=("first-secret", "second-secret")) as address:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "first-secret"}):
            response = post(address, {"input": "a"}, headers=headers)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert "secret" not in response.text
        allowed = {"Authorization": "Bearer second-secret"}
        assert post(address, {"input": "a"}, headers=allowed).status_code == 200
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(address + path).status_code == 200
        assert httpx.get(f"{address}/v1/models").status_code == 401


def test_other_origins_may_not_call_unless_they_are_named(address, embedder):
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    response = httpx.options(f"{address}/v1/embeddings", headers=ask)
    assert "access-control-allow-origin" not in response.headers
    with running({"tiny": embedder}, origins=("https://a.example",)) as other:
        response = httpx.options(f"{other}/v1/embeddings", headers=ask)
        assert response.headers["access-control-allow-origin"] == "https://a.example"


@pytest.fixture
def slow(embedder, monkeypatch):
    """A model that takes half a second a batch."""
    compute = type(embedder).encode_tokens

    def slowly(*given, **options):
        time.sleep(0.5)
        return compute(*given, **options)

    monkeypatch.setattr(type(embedder), "encode_tokens", slowly)
    return embedder


def test_a_full_queue_answers_429_and_when_to_come_back(slow):
    with running({"tiny": slow}, max_queued_tokens=2000) as address:
        found = error_of(post(address, {"input": ["many words " * 20] * 49}))
        assert found["message"].startswith("Requested 2058 tokens, max 2000 tokens per request")
        assert found["type"] == found["code"] == "max_tokens_per_request"
        statuses = []

        def ask():
            response = post(address, {"input": ["many words " * 20] * 20})
            statuses.append((response.status_code, response.headers.get("retry-after")))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert {status for status, _ in statuses} == {200, 429}
        assert all(int(wait) >= 1 for status, wait in statuses if status == 429)
        assert post(address, {"input": "a"}).status_code == 200


def test_slow_clients_and_half_open_connections_are_closed(embedder, monkeypatch):
    monkeypatch.setattr("polyvec.serve.listening.HEAD_TIMEOUT", 0.3)
    with running({"tiny": embedder}, body_timeout=0.3) as address:
        port = int(address.rpartition(":")[2])
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        for sent, answer in ((b"", b""), (b"POST /v1", b""), (head, b"HTTP/1.1 408")):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(sent)
                assert connection.recv(12) == answer
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 200_000)
            with contextlib.suppress(ConnectionError):
                assert b"200" not in connection.recv(100)
        # Between the requests of one connection there is more time.
        with httpx.Client() as client:
            assert client.get(f"{address}/health").status_code == 200
            time.sleep(0.5)
            assert client.get(f"{address}/health").status_code == 200


def test_an_error_of_ours_shows_nothing_of_the_inside(embedder, monkeypatch, caplog):
    with running({"tiny": embedder}) as address:

        def broken(*_, **__):
            raise RuntimeError("/secret/path and the text")

        monkeypatch.setattr(embedder.__class__, "encode_tokens", broken)
        with caplog.at_level("INFO", "polyvec.serve"):
            found = error_of(post(address, {"input": "a private text"}), 500)
            end = time.monotonic() + 10  # the line comes after the answer
            while "RuntimeError" not in caplog.text and time.monotonic() < end:
                time.sleep(0.01)
        assert found["message"] == "the server failed on this request"
        assert "RuntimeError" in caplog.text
        assert "secret" not in caplog.text
        assert "private" not in caplog.text
        monkeypatch.undo()
        assert post(address, {"input": "a"}).status_code == 200


def test_a_client_that_hangs_up_leaves_the_queue(slow):
    with running({"tiny": slow}, max_batch_tokens=64) as address:
        body = {"input": [f"text number {i} " * 8 for i in range(30)]}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/embeddings", json=body, timeout=0.7)
        began = time.monotonic()
        assert post(address, {"input": "a"}).status_code == 200
        assert time.monotonic() - began < 3  # the rest would take 15 s
        assert 'status="499"' in httpx.get(f"{address}/metrics").text


def test_what_was_accepted_is_answered_before_the_server_ends(slow):
    app = create_app({"tiny": slow}, ServerSettings())
    server, at = server_of(app), listening("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{at.getsockname()[1]}"
    while not server.started:
        time.sleep(0.02)
    while httpx.get(f"{address}/ready").status_code != 200:
        time.sleep(0.02)
    answers = []
    body = {"input": ["many words " * 20] * 40}
    asking = threading.Thread(target=lambda: answers.append(post(address, body)))
    asking.start()
    while not server.server_state.tasks:
        time.sleep(0.001)
    server.should_exit = True
    asking.join(30)
    thread.join(30)
    assert [each.status_code for each in answers] == [200]


def test_tokens_are_cut_unless_the_request_says_no(address):
    body = {"input": "word " * 200}
    for more in ({}, {"truncate": True}, {"truncate": None}):
        (found,) = post(address, {**body, **more}, "/tokenize").json()["data"]
        assert (found["truncated"], len(found["ids"])) == (True, 64)
    found = error_of(post(address, {**body, "truncate": False}, "/tokenize"))
    assert found["message"].startswith("input[0]: 202 tokens, the model reads 64")
    short = post(address, {"input": "a word", "truncate": False}, "/tokenize").json()["data"][0]
    assert not short["truncated"]


def test_no_part_of_an_answer_waits_for_the_one_before(embedder, monkeypatch):
    """Else the body is sent when the headers were acknowledged, which clients put off by 40 ms."""
    found, made = [], TimedProtocol.connection_made

    def seen(self, transport):
        connection = transport.get_extra_info("socket")
        found.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(TimedProtocol, "connection_made", seen)
    with running({"tiny": embedder}) as address:
        assert httpx.get(f"{address}/health").status_code == 200
    assert found and all(found)


def test_a_small_queue_and_a_model_that_cannot_be_served(embedder):
    with running({"tiny": embedder}, max_queued_tokens=10) as address:
        assert post(address, {"input": "a cat"}).status_code == 200

    class Tokens(Embedder):
        """Gives a vector for each token."""

        def encode_vectors(self, inputs, **options):
            return super().encode_vectors(inputs, output_value="token_embeddings", **options)

    several = Tokens.__new__(Tokens)
    several.__dict__.update(embedder.__dict__)
    with pytest.raises(InputError, match="several vectors a text"):
        create_app({"several": several})


def test_a_model_that_cannot_compute_is_told_and_never_ready(embedder, monkeypatch, caplog):
    def broken(*_, **__):
        raise ModelError("the weights hold NaN")

    monkeypatch.setattr(type(embedder), "encode_tokens", broken)
    app = create_app({"tiny": embedder})
    server, at = server_of(app), listening("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
    with caplog.at_level("INFO", "polyvec.serve"):
        thread.start()
        address = f"http://127.0.0.1:{at.getsockname()[1]}"
        deadline = time.monotonic() + 20
        status = 503
        while status == 503 and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                status = httpx.get(f"{address}/ready").status_code
            time.sleep(0.02)
    assert status == 500
    assert "the weights hold NaN" in caplog.text
    server.should_exit = True
    thread.join(30)
