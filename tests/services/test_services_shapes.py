"""What is sent to each API and how its answer is read, on a server of this machine."""

import json

import numpy as np
import pytest
from embedding_apis import KEY, EmbeddingServer, vector_of

from polyvec import Embedder
from polyvec.embed.schemes import APIS
from polyvec.errors import InputError, ModelError, SettingsError
from polyvec.services import ServiceEmbedder
from polyvec.services.providers import PROVIDERS


def loaded(name, server, **options):
    return Embedder.from_pretrained(name, base_url=server.url, api_key=KEY, **options)


def units(texts, task=""):
    vectors_NE = np.stack([vector_of(text, task) for text in texts])
    return vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)


def test_every_scheme_has_a_provider():
    assert {*PROVIDERS, "http", "https"} == set(APIS)


def test_openai():
    with EmbeddingServer() as server:
        model = loaded("openai:text-embedding-3-small", server)
        found_NE = model.encode(["a cat", "a dog", "a cat"])
        (request,) = server.requests
        assert request["path"] == "/v1/embeddings"
        assert request["headers"]["authorization"] == f"Bearer {KEY}"
        assert request["body"] == {
            "model": "text-embedding-3-small",
            "input": ["a cat", "a dog"],
            "encoding_format": "base64",
        }
        assert found_NE.dtype == np.float32
        texts = ("a cat", "a dog", "a cat")
        np.testing.assert_array_equal(found_NE, np.stack([vector_of(text) for text in texts]))
        # OpenAI's API has no roles: a query's vector is there already.
        np.testing.assert_array_equal(model.encode_query("a cat"), vector_of("a cat"))
        assert len(server.requests) == 1
        assert model.get_embedding_dimension() == 8
        assert (model.usage.prompts, model.usage.cached, model.usage.prompt_tokens) == (4, 2, 6)


def test_dimensions_are_asked_for_and_checked():
    with EmbeddingServer() as server:
        model = loaded("openai:text-embedding-3-large", server, dimensions=4)
        assert model.encode("a cat").shape == (4,)
        assert server.requests[0]["body"]["dimensions"] == 4
        assert model.get_embedding_dimension() == 4


def test_truncated_vectors_have_length_1_and_cost_nothing_more():
    with EmbeddingServer() as server:
        whole = loaded("openai:m", server)
        whole.encode(["a cat"])
        model = loaded("openai:m", server, truncate_dim=3)
        expected_E = vector_of("a cat")[:3] / np.linalg.norm(vector_of("a cat")[:3])
        np.testing.assert_allclose(model.encode("a cat"), expected_E, rtol=1e-6)
        assert model.get_embedding_dimension() == 3
        assert len(server.requests) == 1
        assert model.fingerprint() != whole.fingerprint()


@pytest.mark.parametrize(
    ("role", "task"),
    [("query", "search_query"), ("document", "search_document"), (None, "search_document")],
)
def test_cohere(role, task):
    with EmbeddingServer() as server:
        model = loaded("cohere:embed-v4.0", server, dimensions=4)
        found = model.encode(["a cat"], role=role)
        (request,) = server.requests
        assert request["path"] == "/v1/embed"
        assert request["headers"]["authorization"] == f"Bearer {KEY}"
        assert request["body"] == {
            "model": "embed-v4.0",
            "texts": ["a cat"],
            "input_type": task,
            "embedding_types": ["float"],
            "output_dimension": 4,
            "truncate": "END",
        }
        np.testing.assert_array_equal(found[0], vector_of("a cat", task, 4))
        assert model.usage.prompt_tokens == 3


def test_roles_have_vectors_of_their_own_in_the_cache():
    with EmbeddingServer() as server:
        model = loaded("cohere:embed-v4.0", server)
        for _ in range(2):
            query, document = model.encode_query("a cat"), model.encode_document("a cat")
        np.testing.assert_array_equal(query, vector_of("a cat", "search_query"))
        np.testing.assert_array_equal(document, vector_of("a cat", "search_document"))
        assert len(server.requests) == 2
        assert model.prompt_key(role="query") != model.prompt_key(role="document")
        assert model.prompt_key(role="query")[0] == "input_type=search_query"
        # The kinds of tasks that evaluate asks for by MTEB's names.
        assert model.prompt_key(prompt_name="Clustering")[0] == "input_type=clustering"


def test_voyage():
    with EmbeddingServer() as server:
        model = loaded("voyage:voyage-4", server, dimensions=4)
        model.encode(["a cat"], role="query", truncate="error")
        model.encode(["a cat"])
        first, second = (each["body"] for each in server.requests)
        assert first == {
            "model": "voyage-4",
            "input": ["a cat"],
            "input_type": "query",
            "output_dimension": 4,
            "truncation": False,
        }
        assert "input_type" not in second
        assert second["truncation"] is True


def test_google_says_roles_by_a_field():
    with EmbeddingServer() as server:
        model = loaded("google:gemini-embedding-001", server, dimensions=4)
        found = model.encode(["a cat", "a dog"], role="query")
        (request,) = server.requests
        assert request["path"] == "/v1/models/gemini-embedding-001:batchEmbedContents"
        assert request["headers"]["x-goog-api-key"] == KEY
        assert "authorization" not in request["headers"]
        assert request["body"]["requests"][1] == {
            "model": "models/gemini-embedding-001",
            "content": {"parts": [{"text": "a dog"}]},
            "taskType": "RETRIEVAL_QUERY",
            "outputDimensionality": 4,
        }
        # Fewer dimensions than the model's own come without length 1.
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_google_says_roles_by_a_prefix_to_its_second_model():
    with EmbeddingServer() as server:
        model = loaded("google:gemini-embedding-2", server)
        model.encode(["a cat"], role="query")
        model.encode(["a cat"], role="document")
        model.encode(["a cat"], prompt_name="STS")
        assert [each["texts"] for each in server.requests] == [
            ["task: search result | query: a cat"],
            ["title: none | text: a cat"],
            ["task: sentence similarity | query: a cat"],
        ]
        assert all("taskType" not in each["body"]["requests"][0] for each in server.requests)
        assert model.prompt_key(role="document")[0] == "title: none | text: "


def test_amazon_signs_each_text(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    with EmbeddingServer() as server:
        name = "amazon:amazon.titan-embed-text-v2:0"
        model = Embedder.from_pretrained(name, base_url=server.url, dimensions=4)
        found = model.encode(["a cat", "a dog", "a bird"])
        assert len(server.requests) == 3
        for request in server.requests:
            assert request["path"] == "/v1/model/amazon.titan-embed-text-v2%3A0/invoke"
            assert set(request["body"]) == {"inputText", "dimensions"}
            said = request["headers"]["authorization"]
            assert "Credential=AKIDEXAMPLE/" in said
            assert "/eu-west-1/bedrock/aws4_request" in said
            assert KEY not in said
        expected = np.stack([vector_of(text, "", 4) for text in ("a cat", "a dog", "a bird")])
        np.testing.assert_array_equal(found, expected)


def test_amazon_takes_a_bearer_key(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with EmbeddingServer() as server:
        monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", KEY)
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", server.url)
        Embedder.from_pretrained("amazon:amazon.titan-embed-text-v2:0").encode("a cat")
        assert server.requests[0]["headers"]["authorization"] == f"Bearer {KEY}"


def test_amazon_without_credentials_names_the_variables(monkeypatch):
    name = "amazon:amazon.titan-embed-text-v2:0"
    with pytest.raises(SettingsError, match="AWS_REGION"):
        Embedder.from_pretrained(name)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    with pytest.raises(SettingsError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        Embedder.from_pretrained(name)


def test_alibaba_takes_ten_texts_at_once():
    texts = [f"text {number}" for number in range(25)]
    with EmbeddingServer(most_texts=10) as server:
        model = loaded("alibaba:text-embedding-v4", server)
        np.testing.assert_array_equal(model.encode(texts), np.stack(list(map(vector_of, texts))))
        assert sorted(len(each["texts"]) for each in server.requests) == [5, 10, 10]
        assert {each["body"]["encoding_format"] for each in server.requests} == {"float"}


def test_any_server_by_its_url_with_prompts_for_roles():
    with EmbeddingServer() as server:
        model = Embedder.from_pretrained(
            f"{server.url}#intfloat/e5-base-v2",
            prompts={"query": "query: ", "document": "passage: "},
        )
        assert isinstance(model, ServiceEmbedder)
        found = model.encode_document(["a cat"])
        np.testing.assert_array_equal(found[0], vector_of("passage: a cat"))
        assert server.requests[0]["body"]["model"] == "intfloat/e5-base-v2"
        assert "authorization" not in server.requests[0]["headers"]
        model.encode(["a cat"], prompt="of an animal: ")
        assert server.requests[-1]["texts"] == ["of an animal: a cat"]
        assert model.name == f"{server.url}#intfloat/e5-base-v2"


def test_keys_go_to_their_own_servers_only(monkeypatch):
    with EmbeddingServer() as server:
        monkeypatch.setenv("VOYAGE_API_KEY", KEY)
        Embedder.from_pretrained("voyage:voyage-4", base_url=server.url).encode("a cat")
        assert "authorization" not in server.requests[-1]["headers"]
        with pytest.raises(SettingsError, match="VOYAGE_API_KEY goes only to"):
            Embedder.from_pretrained("voyage:voyage-4", base_url="https://example.com/v1")
        monkeypatch.setenv("VOYAGE_BASE_URL", server.url)
        Embedder.from_pretrained("voyage:voyage-4").encode("a dog")
        assert server.requests[-1]["headers"]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("name", sorted(set(PROVIDERS) - {"amazon"}))
def test_without_a_key_the_variable_is_named(name):
    variable = PROVIDERS[name].account.key_variables[0]
    with pytest.raises(SettingsError, match=f"set the environment variable {variable}"):
        Embedder.from_pretrained(f"{name}:some-model")


def test_prices_hold_for_the_provider_itself_only(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    own = Embedder.from_pretrained("openai:text-embedding-3-small", cache=False)
    assert own.usage.prompt_price == 0.02
    other = Embedder.from_pretrained(
        "openai:text-embedding-3-small", cache=False, base_url="http://localhost:1/v1"
    )
    assert other.usage.prompt_price is None
    assert KEY not in repr(own) + str(own.settings()) + str(own.described())


def test_wrong_names_and_options_are_refused(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(SettingsError, match="names no model"):
        Embedder.from_pretrained("openai:")
    with pytest.raises(SettingsError, match="#NAME"):
        Embedder.from_pretrained("http://localhost:8000/v1")
    with pytest.raises(SettingsError, match="'pooling' is not for a model behind an API"):
        Embedder.from_pretrained("openai:m", pooling="mean")
    with pytest.raises(SettingsError, match="Did you mean 'dimensions'"):
        Embedder.from_pretrained("openai:m", dimension=3)
    Embedder.from_pretrained("openai:m", device=None, trust_remote_code=False)
    model = Embedder.from_pretrained("openai:m")
    with pytest.raises(InputError, match="role 'passage' is not known"):
        model.encode("a cat", role="passage")
    with pytest.raises(InputError, match="prompt_name 'query' is not known"):
        model.encode("a cat", prompt_name="query")


def test_what_needs_weights_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = Embedder.from_pretrained("openai:m")
    with pytest.raises(ModelError, match=r"cannot be saved: its weights are behind an API"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="can embed"):
        Embedder("openai:m")


def test_a_text_that_is_none_is_named_before_anything_is_sent():
    with EmbeddingServer() as server:
        model = loaded("openai:m", server)
        with pytest.raises(InputError, match=r"inputs\[1\] is int"):
            model.encode(["a", 3])
        with pytest.raises(InputError, match=r"inputs\[1\] is empty"):
            model.encode(["a", ""])
        with pytest.raises(InputError, match="lone surrogate"):
            model.encode(["a", "\ud83d"])
        assert server.requests == []


def test_similarity_is_cosine():
    with EmbeddingServer() as server:
        model = loaded("openai:m", server)
        a, b = model.encode(["a cat"]), model.encode(["a dog", "a cat"])
        expected = units(["a cat"]) @ units(["a dog", "a cat"]).T
        np.testing.assert_allclose(model.similarity(a, b), expected, atol=1e-6)
        np.testing.assert_allclose(model.similarity_pairwise(a, b[:1]), expected[0, :1], atol=1e-6)


def test_the_fingerprint_tells_models_apart():
    with EmbeddingServer() as server, EmbeddingServer() as other:
        models = [
            loaded("openai:a", server),
            loaded("openai:b", server),
            loaded("openai:a", server, dimensions=4),
            loaded("openai:a", other),
            loaded("openai:a", server, prompts={"query": "q: "}),
            loaded("cohere:a", server),
        ]
        assert len({each.fingerprint() for each in models}) == len(models)
        sent = len(server.requests)
        assert loaded("openai:a", server).fingerprint() == models[0].fingerprint()
        assert len(server.requests) == sent  # known from the cache
        assert json.dumps(models[0].settings())
