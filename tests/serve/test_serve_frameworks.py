"""LangChain's and LlamaIndex's own clients of OpenAI's API, against the server."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

from test_serve_http import running

TEXTS = ["a cat sleeps", "the stock market\nfell", "ein Text mit Ümläuten 日本"]
# "The quick brown over the lazy dog" of OpenAI's tokenizer (cl100k_base); all are ids here, too.
OTHER_IDS = [791, 4062, 14198, 927, 279, 16053, 5679]


@pytest.fixture(scope="module")
def base(embedder):
    with running({"tiny": embedder}, api_keys=("the-key-of-tests",)) as address:
        yield {"base_url": f"{address}/v1", "api_key": "the-key-of-tests"}


def same(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def cut(vectors_NE, dimensions):
    short_NE = vectors_NE[:, :dimensions]
    return short_NE / np.linalg.norm(short_NE, axis=1, keepdims=True)


@pytest.mark.medium
def test_langchain_gets_the_models_vectors(base, embedder, tiny_bert):
    langchain = pytest.importorskip("langchain_openai", reason="needs the extra 'integrations'")
    expected_NE = embedder.encode(TEXTS)

    def made(**options):
        return langchain.OpenAIEmbeddings(model="tiny", max_retries=0, **base, **options)

    plain = made(check_embedding_ctx_length=False)
    same(plain.embed_documents(TEXTS), expected_NE)
    same(plain.embed_query(TEXTS[0]), expected_NE[0])
    same(asyncio.run(plain.aembed_documents(TEXTS)), expected_NE)
    same(
        made(check_embedding_ctx_length=False, dimensions=8).embed_documents(TEXTS),
        cut(expected_NE, 8),
    )
    # Cut by the model's own tokenizer in place of OpenAI's.
    own = made(tiktoken_enabled=False, tiktoken_model_name=str(tiny_bert))
    same(own.embed_query(TEXTS[0]), expected_NE[0])


@pytest.mark.medium
def test_llama_index_gets_the_models_vectors(base, embedder):
    like = pytest.importorskip(
        "llama_index.embeddings.openai_like", reason="needs the extra 'integrations'"
    )
    expected_NE = embedder.encode(TEXTS)
    given = {"model_name": "tiny", "api_base": base["base_url"], "api_key": base["api_key"]}
    model = like.OpenAILikeEmbedding(**given, embed_batch_size=2)
    same(model.get_text_embedding_batch(TEXTS), expected_NE)
    same(model.get_query_embedding(TEXTS[0]), expected_NE[0])
    same(asyncio.run(model.aget_text_embedding_batch(TEXTS)), expected_NE)
    short = like.OpenAILikeEmbedding(**given, dimensions=8)
    same(short.get_text_embedding_batch(TEXTS), cut(expected_NE, 8))


def test_ids_of_another_tokenizer_are_refused_with_advice(base):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(**base, max_retries=0)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model="tiny", input=[OTHER_IDS])
    wrong = openai.OpenAI(base_url=base["base_url"], api_key="another-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as found:
        wrong.models.list()
    assert found.value.code == "invalid_api_key"
