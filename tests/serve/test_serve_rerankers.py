"""Rerankers of a server: a request that names one gets its scores, by the rules of all requests."""

import argparse
import time

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

from fastapi.testclient import TestClient
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from polyvec import Embedder
from polyvec.cli import serve
from polyvec.errors import InputError, SettingsError
from polyvec.rerank.cross_encoder import CrossEncoder
from polyvec.rerank.reranker import Reranker
from polyvec.serve.app import create_app
from polyvec.serve.settings import ServerSettings

DOCUMENTS = ["a cat sleeps", "the stock market fell", "a kitten", "a cat sleeps"]
LONG = "word " * 600


class Shortest(Reranker):
    """Orders lists: minus the place among the lengths of the documents of one query."""

    orders_lists = True
    calls: int = 0

    def scores(self, pairs, instructions=None):
        assert len({query for query, _ in pairs}) == 1, "two requests in one list"
        type(self).calls += 1
        lengths = np.array([len(document) for _, document in pairs])
        return -lengths.argsort(kind="stable").argsort().astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bert):
    """A cross-encoder with random weights."""
    import torch

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "judge"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=1)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def client(tiny_bert, folder):
    settings = ServerSettings(max_texts=20, max_queued_tokens=300, max_batch_tokens=64)
    rerankers = {"judge": CrossEncoder.load(folder), "shortest": Shortest()}
    app = create_app({"tiny": Embedder.from_pretrained(tiny_bert)}, settings, rerankers=rerankers)
    with TestClient(app) as found:
        deadline = time.monotonic() + 60
        while found.get("/ready").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        yield found


def ask(client, model, documents=DOCUMENTS, **body):
    return client.post(
        "/v1/rerank", json={"model": model, "query": "cats", "documents": documents, **body}
    )


def test_scores_are_those_of_the_cross_encoder(client, folder):
    answer = ask(client, "judge", return_documents=True).json()
    logits = CrossEncoder.load(folder).scores([("cats", each) for each in DOCUMENTS])
    expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    order = np.argsort(-expected, kind="stable").tolist()
    assert answer["model"] == "judge"
    assert [each["index"] for each in answer["results"]] == order
    found = [each["relevance_score"] for each in answer["results"]]
    np.testing.assert_allclose(found, expected[order], atol=1e-6)
    assert answer["results"][0]["document"]["text"] == DOCUMENTS[order[0]]
    assert answer["usage"]["total_tokens"] == sum(
        map(len, CrossEncoder.load(folder).tokens([("cats", each) for each in DOCUMENTS]))
    )
    by_similarity = ask(client, "tiny").json()["results"]
    assert [each["relevance_score"] for each in by_similarity] != found


def test_a_reranker_of_lists_gets_one_request_at_a_time(client):
    before = Shortest.calls
    answer = ask(client, "shortest", top_n=2).json()
    assert [each["index"] for each in answer["results"]] == [2, 0]
    assert Shortest.calls == before + 1


def test_the_rules_are_those_of_all_requests(client):
    answer = ask(client, "judge", ["a", LONG])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("documents[1]: with the query it is longer")
    answer = ask(client, "judge", ["a", LONG], truncate=True)
    assert answer.status_code == 200 and answer.headers["x-truncated-texts"] == "1"
    assert ask(client, "judge", ["a"] * 21).status_code == 400
    assert ask(client, "judge", [LONG] * 10, truncate=True).status_code == 400
    assert ask(client, "jugde").status_code == 404
    vectors = client.post("/v1/embeddings", json={"model": "judge", "input": "a"})
    assert vectors.status_code == 404, "a reranker has no vectors"


def test_it_is_among_the_models_and_counted(client):
    ask(client, "judge")
    cards = {each["id"]: each for each in client.get("/v1/models").json()["data"]}
    assert cards["judge"]["kind"] == "reranker" and cards["judge"]["dimensions"] is None
    assert client.get("/v1/models/judge").json() == cards["judge"]
    page = client.get("/metrics").text
    assert 'polyvec_batch_texts_count{model="judge"}' in page
    assert 'polyvec_queued_tokens{model="judge"} 0.0' in page


def test_what_the_command_line_takes(folder):
    def made(*rerankers):
        return serve._rerankers(argparse.Namespace(reranker=list(rerankers)))

    found = made(f"judge={folder}", f"short=cross_encoder model={folder} max_length=16")
    assert [type(each) for each in found.values()] == [CrossEncoder, CrossEncoder]
    assert found["short"].max_length == 16
    for wrong, told in (
        ("judge", "expected NAME=MODEL"),
        ("a=listwise model=https://example.org/v1", "behind an API is not served again"),
        (f"a=cross_encoder model={folder} seconds=1", "see --timeout"),
    ):
        with pytest.raises(InputError, match=told):
            made(wrong)
    with pytest.raises(SettingsError, match="--reranker a"):
        made("a=cross_encodre model=x")


def test_a_name_is_of_one_model(tiny_bert):
    model = Embedder.from_pretrained(tiny_bert)
    with pytest.raises(InputError, match="a model and a reranker of this name"):
        create_app({"tiny": model}, rerankers={"tiny": Shortest()})
