"""APIs that misbehave: what is asked again, what is paid once, and what a person is told."""

import email.utils
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from embedding_apis import KEY, EmbeddingServer, vector_of

from polyvec import Embedder
from polyvec.errors import (
    InputError,
    MissingExtraError,
    ServiceError,
    ServiceWarning,
    SettingsError,
)
from polyvec.services.batches import Budget, at_most, batches, estimate

TEXTS = [f"text number {number}" for number in range(60)]


def loaded(server, name="alibaba:m", **options):
    options = {"timeout_s": 5.0, **options}
    return Embedder.from_pretrained(name, base_url=server.url, api_key=KEY, **options)


def expected(texts=TEXTS):
    return np.stack([vector_of(text) for text in texts])


@pytest.mark.parametrize(
    ("plan", "cause"),
    [
        (["429"], "429"),
        (["429@0.01"], "429"),
        (["408"], "408"),
        (["409"], "409"),
        (["500", "503"], "500"),
        (["529"], "529"),
        (["google429"], "429"),
        (["html"], "reply"),
        (["cut"], "broken"),
    ],
)
def test_what_passes_is_asked_again(plan, cause):
    with EmbeddingServer(plan=list(plan)) as server:
        model = loaded(server)
        np.testing.assert_array_equal(model.encode(TEXTS), expected())
        assert model.client.retries[cause] >= 1
        assert sum(model.client.retries.values()) == len(plan)
        assert sorted(server.texts) == sorted(TEXTS)


def test_later_failures_lose_and_double_nothing():
    plan = ["ok", "500", "ok", "429", "shuffled", "html", "cut", "ok", "503"]
    with EmbeddingServer(plan=plan) as server:
        model = loaded(server, concurrency=3)
        np.testing.assert_array_equal(model.encode(TEXTS), expected())
        assert sorted(server.texts) == sorted(TEXTS)
        assert server.most_at_once <= 3


@pytest.mark.medium
def test_retry_after_is_waited_for():
    date = email.utils.formatdate(time.time() + 2, usegmt=True)
    for value, least in (("0.3", 0.3), (date, 0.5)):
        with EmbeddingServer(plan=[f"429@{value}"]) as server:
            began = time.perf_counter()
            loaded(server, cache=False).encode("a cat")
            assert time.perf_counter() - began >= least


def test_a_wait_that_is_too_long_ends_the_run():
    with EmbeddingServer(plan=["429@3600"]) as server:
        with pytest.raises(ServiceError, match="asks to wait 3600 s, more than max_wait_s 60"):
            loaded(server).encode("a cat")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("few", "the reply has 9 vectors for 10 texts"),
        ("nan", "vector 0 of the reply holds NaN or infinity"),
        ("no_index", "the reply's index fields are not 0 to 9"),
        ("object", "not a JSON object but list"),
        ("400", "status 400: overloaded"),
        ("404", "check the model's name and the address"),
    ],
)
def test_what_does_not_pass_is_told_and_not_paid_again(step, message):
    with EmbeddingServer(plan=[step]) as server:
        with pytest.raises(ServiceError, match=message) as caught:
            loaded(server).encode(TEXTS)
        assert len(server.requests) == 1
        assert str(caught.value).startswith("alibaba:m: inputs[0] to inputs[9] (127.0.0.1:")
        assert "\n" not in str(caught.value)
        assert KEY not in str(caught.value)


def test_a_wrong_key_is_told_once_and_never_shown(monkeypatch):
    with EmbeddingServer(plan=["401"] * 9) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        model = Embedder.from_pretrained("openai:m")
        with pytest.raises(ServiceError, match="check OPENAI_API_KEY") as caught:
            model.encode(TEXTS * 100)
        assert "your key is [key]" in str(caught.value)
        assert KEY not in str(caught.value)
        assert len(server.requests) == 1  # the first is sent alone


def test_a_server_that_is_not_there():
    with EmbeddingServer() as server:
        url = server.url
    model = Embedder.from_pretrained(f"{url}#m", timeout_s=5.0)
    with pytest.raises(ServiceError, match=r"no server answers .*; start it or check the address"):
        model.encode("a cat")


def test_a_server_that_does_not_answer():
    with EmbeddingServer(plan=["slow"]) as server:
        model = loaded(server, timeout_s=0.2)
        with pytest.raises(ServiceError, match=r"no reply within 0.2 s; if it is only slow"):
            model.encode("a cat")


def test_a_batch_that_is_too_large_is_halved():
    with EmbeddingServer(most_texts=7) as server:
        model = loaded(server, "openai:m")
        np.testing.assert_array_equal(model.encode(TEXTS), expected())
        assert sorted(server.texts) == sorted(TEXTS)
        refused = sum(not each["paid"] for each in server.requests)
        model.encode([f"more {number}" for number in range(60)])
        # It remembers how many the server takes.
        assert sum(not each["paid"] for each in server.requests) == refused


def test_a_text_that_is_too_long_is_named_and_the_others_are_kept():
    texts = [*TEXTS[:40], "long " * 3000, *TEXTS[40:]]
    with EmbeddingServer() as server:
        model = loaded(server, "openai:m")
        with pytest.raises(ServiceError, match=r"inputs\[40\] .*too much for one request.*cut it"):
            model.encode(texts)
        paid = len(server.texts)
        assert paid >= 32
        np.testing.assert_array_equal(model.encode(TEXTS), expected())
        assert sorted(server.texts) == sorted(TEXTS)


def test_what_is_under_way_when_another_fails_is_kept():
    with EmbeddingServer(plan=["ok", "400", "slow", "slow", "slow"]) as server:
        with pytest.raises(ServiceError, match="status 400"):
            loaded(server, concurrency=4).encode(TEXTS)
        assert len(server.texts) == 40
        np.testing.assert_array_equal(loaded(server).encode(TEXTS), expected())
        assert sorted(server.texts) == sorted(TEXTS)


def test_another_width_or_model_is_an_error():
    with EmbeddingServer(plan=["ok", "wide"]) as server:
        model = loaded(server)
        model.encode("a cat")
        with pytest.raises(ServiceError, match="9 dimensions, before by 'm' with 8"):
            model.encode("a dog")
        server.model = "m-2027"
        with pytest.raises(ServiceError, match=r"answered by 'm-2027'.*embed all again"):
            loaded(server).encode("a bird")
        assert loaded(server).encode("a cat").shape == (8,)  # is in the cache


def test_dimensions_that_are_not_heard():
    with (
        EmbeddingServer(plan=["wide"]) as server,
        pytest.raises(ServiceError, match="truncate_dim"),
    ):
        loaded(server, dimensions=4).encode("a cat")


def test_without_counts_the_ledger_has_0_and_a_warning_says_so():
    with EmbeddingServer(has_usage=False) as server:
        model = loaded(server, price=1.0)
        with pytest.warns(ServiceWarning, match="does not say how many tokens") as warned:
            model.encode(TEXTS)
        assert len([each for each in warned if each.category is ServiceWarning]) == 1
        assert model.usage.prompt_tokens == 0
        assert model.budget.spent == sum(map(estimate, TEXTS))


def test_the_ledger_has_a_line_a_run(tmp_path):
    path = tmp_path / "cache" / "services" / "ledger.jsonl"
    with EmbeddingServer(plan=["ok", "ok", "400"]) as server:
        model = loaded(server, price=0.5, concurrency=1)
        model.encode(TEXTS[:10])
        model.encode(TEXTS[:10])  # asks for nothing
        with pytest.raises(ServiceError):
            model.encode(TEXTS[5:30])
    done, failed = (json.loads(line) for line in path.read_text().splitlines())
    assert (done["model"], done["state"]) == ("alibaba:m", "done")
    assert done["identity"] == f"{server.url}#m"
    tokens = sum(1 + len(text.split()) for text in TEXTS[:10])
    assert (done["prompts"], done["cached"], done["prompt_tokens"]) == (10, 0, tokens)
    assert done["cost"] == pytest.approx(0.5 * tokens / 1e6)
    assert (failed["state"], failed["prompts"], failed["cached"]) == ("failed", 25, 5)
    assert failed["prompt_tokens"] == tokens
    assert KEY not in path.read_text()
    assert TEXTS[0] not in path.read_text()


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with EmbeddingServer() as server:
        model = loaded(server, cache=tmp_path / "file" / "below")
        with pytest.warns(ServiceWarning, match="going on without"):
            np.testing.assert_array_equal(model.encode(TEXTS), expected())


def test_without_a_cache_nothing_is_written(tmp_path):
    with EmbeddingServer() as server:
        model = loaded(server, cache=False)
        model.encode(["a cat"])
        model.encode(["a cat"])
        assert len(server.requests) == 2
        assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("tokens_of", [lambda text: 4, at_most], ids=["few", "most"])
def test_a_budget_is_never_exceeded(concurrency, tokens_of):
    most = 400
    with EmbeddingServer(tokens_of=tokens_of) as server:
        model = loaded(server, max_tokens=most, concurrency=concurrency)
        with pytest.raises(ServiceError, match="stopped before the budget is exceeded"):
            model.encode(TEXTS * 3 + [f"more of {text}" for text in TEXTS])
        spent = sum(map(tokens_of, server.texts))
        assert spent == model.budget.spent == model.usage.prompt_tokens
        assert most - 45 < spent <= most
        kept = list(server.texts)
        again = loaded(server)
        np.testing.assert_array_equal(again.encode(TEXTS), expected())
        assert sorted(server.texts) == sorted({*kept, *TEXTS})


def test_a_budget_in_money(monkeypatch):
    with EmbeddingServer() as server:
        with pytest.raises(SettingsError, match="pass price="):
            loaded(server, max_cost=1.0)
        monkeypatch.setenv("POLYVEC_MAX_COST", "0.0001")
        assert loaded(server, price=1.0).budget.limit == pytest.approx(100)
        monkeypatch.setenv("POLYVEC_MAX_COST", "a lot")
        with pytest.raises(SettingsError, match="POLYVEC_MAX_COST='a lot' is not a number"):
            loaded(server, price=1.0)
    with pytest.raises(SettingsError, match="max_tokens 0"):
        Budget(0, None, None)


def test_batches_keep_both_limits():
    texts = ["word " * n for n in (1, 1, 50, 1, 400, 1, 1)]
    found = batches(texts, max_texts=3, max_tokens=100)
    assert [row for batch in found for row in batch] == list(range(7))
    assert all(len(batch) <= 3 for batch in found)
    sizes = [sum(estimate(texts[row]) for row in batch) for batch in found]
    assert all(size <= 100 or len(batch) == 1 for size, batch in zip(sizes, found, strict=True))
    assert batches([], max_texts=3, max_tokens=None) == []


def test_requests_are_spaced():
    with EmbeddingServer() as server:
        model = loaded(server, requests_per_minute=600)
        began = time.perf_counter()
        model.encode(TEXTS)
        assert time.perf_counter() - began >= 0.5  # 6 requests, 0.1 s apart


def test_an_iterator_is_read_in_bounded_steps():
    asked = []

    def texts():
        for number in range(100):
            asked.append(number)
            yield f"text {number}"

    with EmbeddingServer() as server:
        chunks = loaded(server).encode_iter(texts(), chunk_size=20)
        assert asked == []
        assert next(chunks).shape == (20, 8)
        assert len(asked) == 20
        chunks.close()
        with pytest.raises(InputError):
            loaded(server).encode_iter("a cat")


def test_threads_share_a_model():
    with EmbeddingServer(delay_s=0.01) as server, ThreadPoolExecutor(4) as threads:
        model = loaded(server)
        parts = [TEXTS[start::4] for start in range(4)]
        for part, found in zip(parts, threads.map(model.encode, parts), strict=True):
            np.testing.assert_array_equal(found, expected(part))


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polyvec\[services\]'"):
        Embedder.from_pretrained("http://localhost:8000/v1#m")


@pytest.mark.medium
def test_a_killed_process_pays_for_the_rest_only(tmp_path):
    code = (
        "import sys; from polyvec import Embedder\n"
        f"model = Embedder.from_pretrained('alibaba:m', base_url=sys.argv[1], api_key='{KEY}')\n"
        "model.encode([f'text number {n}' for n in range(300)])\n"
    )
    texts = [f"text number {number}" for number in range(300)]
    with EmbeddingServer(delay_s=0.1) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url],
            env={**os.environ, "POLYVEC_CACHE": str(tmp_path / "cache")},
        )
        deadline = time.monotonic() + 60
        while len(server.texts) < 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        server.delay_s = 0.0
        time.sleep(0.3)  # what it had sent is answered
        kept = len(server.texts)
        assert 100 <= kept < 300
        model = loaded(server)
        np.testing.assert_array_equal(model.encode(texts), expected(texts))
        # Only replies that were under way when it died, one for each connection, are paid twice.
        assert kept - model.usage.cached <= 8 * 10
        assert len(server.texts) == kept + 300 - model.usage.cached
