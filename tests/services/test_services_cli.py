"""A model behind an API in every verb that embeds, through the command line."""

import json

import numpy as np
import pytest
from embedding_apis import KEY, EmbeddingServer, vector_of

from polyvec.cli import main

WORDS = ("a cat", "a dog", "a spoon", "a fork", "a violin")


@pytest.fixture
def server(monkeypatch):
    with EmbeddingServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("CO_API_URL", server.url)
        monkeypatch.setenv("COHERE_API_KEY", KEY)
        yield server


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(WORDS))
    return path


def run(*words):
    return main([str(word) for word in words])


def test_embed(server, texts, tmp_path):
    output = tmp_path / "vectors.npy"
    assert run("embed", texts, "--model", "openai:small", "-o", output) == 0
    np.testing.assert_array_equal(np.load(output), np.stack(list(map(vector_of, WORDS))))
    paid = len(server.texts)
    bits = tmp_path / "bits.npy"
    how = ("--truncate-dim", 5, "--precision", "ubinary", "-o", bits)
    assert run("embed", texts, "--model", "openai:small", *how) == 0
    signs = np.stack([vector_of(word)[:5] > 0 for word in WORDS])
    np.testing.assert_array_equal(np.load(bits), np.packbits(signs, axis=1))
    assert len(server.texts) == paid  # the second run is free
    levels = tmp_path / "levels.npy"
    how = ("--precision", "int8", "--calibrate", texts, "-o", levels)
    assert run("embed", texts, "--model", "openai:small", *how) == 0
    assert np.load(levels).dtype == np.int8


def test_embed_into_shards(server, texts, tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    folder = tmp_path / "shards"
    assert run("embed", texts, "--model", "openai:small", "-o", f"{folder}/") == 0
    assert run("verify", folder) == 0
    assert json.loads((folder / "manifest.json").read_text())["dimension"] == 8


def test_index_and_search(server, texts, tmp_path, capsys):
    folder = tmp_path / "index"
    assert run("index", folder, texts, "--model", "cohere:embed-v4.0", "--plain") == 0
    assert {each["body"]["input_type"] for each in server.requests} == {"search_document"}
    capsys.readouterr()
    assert run("search", folder, "a cat", "--top-k", 1, "--json") == 0
    assert server.requests[-1]["body"]["input_type"] == "search_query"
    hit = json.loads(capsys.readouterr().out)
    query_E = vector_of("a cat", "search_query")
    rows_NE = np.stack([vector_of(word, "search_document") for word in WORDS])
    cosines = rows_NE @ query_E / np.linalg.norm(rows_NE, axis=1) / np.linalg.norm(query_E)
    assert hit["text"] == WORDS[cosines.argmax()]
    assert hit["score"] == pytest.approx(cosines.max(), abs=1e-5)
    paid = len(server.texts)
    assert run("search", folder, "a cat") == 0
    assert len(server.texts) == paid


def test_an_index_of_another_model_is_refused(server, texts, tmp_path, capsys):
    folder = tmp_path / "index"
    run("index", folder, texts, "--model", "openai:small", "--plain")
    assert run("search", folder, "a cat", "--model", "openai:large") == 2
    assert "built with another model (openai:small" in capsys.readouterr().err


@pytest.mark.medium
def test_evaluate_and_compare(server, tmp_path, capsys):
    rows = [
        {"sentence1": "a cat", "sentence2": word, "score": score}
        for score, word in enumerate(WORDS)
    ]
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "scores.json"
    assert run("evaluate", "openai:small", folder, "-o", output) == 0
    found = json.loads(output.read_text())
    assert found["model"] == "openai:small"
    (result,) = found["results"]
    assert (result["num_texts"], result["num_truncated"]) == (10, 0)
    paid = len(server.texts)
    assert run("evaluate", "openai:small", folder, "-o", output) == 0
    assert len(server.texts) == paid
    assert run("compare", "openai:small", "cohere:v4", "--tasks", folder) == 0


@pytest.mark.medium
def test_mistakes_are_one_line(server, texts, tmp_path, capsys, monkeypatch):
    index = tmp_path / "index"
    cases = {
        ("embed", texts, "--model", "openai:"): "names no model",
        ("embed", texts, "--model", "openai:m", "--pooling", "mean"): "'pooling' is not for",
        ("embed", texts, "--model", "openai:m", "--dtype", "float16"): "'dtype' is not for",
        ("embed", texts, "--model", "openai:m", "--max-seq-length", 3): "not for models behind",
        ("embed", texts, "--model", "openai:m", "--truncate-dim", 9): "not between 1 and 8",
        ("embed", texts, "--model", "openai:m", "--ray", "auto", "-o", "x/"): "needs no devices",
        ("embed", texts, "--model", "http://localhost:1/v1"): "#NAME",
        ("index", index, texts, "--model", "opnai:m"): "not a folder or a hub id",
        ("serve", "openai:m"): "not served again",
        ("data", "stats", texts, "--tokenizer", "openai:m"): "has none here",
    }
    for words, message in cases.items():
        assert run(*words) == 2, words
        told = capsys.readouterr().err
        assert message in told, words
        assert told.count("\n") == 1, words
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run("embed", texts, "--model", "openai:m") == 2
    assert "set the environment variable OPENAI_API_KEY" in capsys.readouterr().err


def test_a_budget_keeps_what_is_there(server, texts, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("POLYVEC_MAX_TOKENS", "25")
    output = tmp_path / "vectors.npy"
    assert run("embed", texts, "--model", "openai:small", "-o", output) == 2
    assert "stopped before the budget is exceeded" in capsys.readouterr().err
    assert not output.exists()
    assert 0 < len(server.texts) < 6
    monkeypatch.delenv("POLYVEC_MAX_TOKENS")
    assert run("embed", texts, "--model", "openai:small", "-o", output) == 0
    assert sorted(server.texts) == sorted(["a", *WORDS])
