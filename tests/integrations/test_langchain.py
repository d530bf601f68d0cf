"""PolyvecEmbeddings inside langchain-core, beside sentence-transformers' vectors."""

import asyncio

import pytest

from polyvec import Embedder
from polyvec.errors import InputError

pytest.importorskip("langchain_core", reason="needs the extra 'integrations'")

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from polyvec.integrations.langchain import PolyvecEmbeddings

TEXTS = ["cats sleep", "the Danube flows through ten countries", "rain"]


def same(found, wanted):
    return found == pytest.approx(wanted, abs=2e-6)


def test_queries_and_documents_have_their_prompts(prompted, reference):
    ours = PolyvecEmbeddings(prompted, model_kwargs={"device": "cpu"})
    assert same(ours.embed_query("a river"), reference("encode_query", "a river"))
    for found, wanted in zip(
        ours.embed_documents(TEXTS), reference("encode_document", TEXTS), strict=True
    ):
        assert same(found, wanted)
    assert ours.embed_query("cats sleep") != ours.embed_documents(["cats sleep"])[0]
    assert type(ours.embed_query("a")[0]) is float and ours.embed_documents([]) == []


def test_options(prompted, reference):
    ours = PolyvecEmbeddings(
        Embedder(prompted),
        encode_kwargs={"batch_size": 1, "prompt": "text: "},
        query_encode_kwargs={"prompt": "find: ", "normalize_embeddings": True},
    )
    assert same(ours.embed_query("rain"), reference("encode", "rain", prompt="find: "))
    (found,) = ours.embed_documents(["rain"])
    assert same(found, reference("encode", "rain", prompt="text: "))


def test_async_gives_the_same(prompted):
    ours = PolyvecEmbeddings(prompted)
    assert asyncio.run(ours.aembed_query("rain")) == ours.embed_query("rain")
    assert asyncio.run(ours.aembed_documents(TEXTS)) == ours.embed_documents(TEXTS)


def test_a_vector_store_finds_what_the_cosine_finds(prompted):
    ours = PolyvecEmbeddings(prompted)
    store = InMemoryVectorStore.from_documents([Document(page_content=t) for t in TEXTS], ours)
    ((best, score), *_) = store.similarity_search_with_score("a river", k=3)
    scores = ours.embedder.similarity(
        ours.embedder.encode_query("a river"), ours.embedder.encode_document(TEXTS)
    )[0]
    assert best.page_content == TEXTS[int(scores.argmax())]
    assert score == pytest.approx(float(scores.max()), abs=1e-5)


def test_mistakes_are_told(prompted):
    ours = PolyvecEmbeddings(prompted)
    for call in (
        lambda: ours.embed_documents("one text"),
        lambda: ours.embed_query(["a"]),
        lambda: PolyvecEmbeddings(3),
        lambda: PolyvecEmbeddings(ours.embedder, model_kwargs={"device": "cpu"}),
        lambda: ours.embed_documents(["a", None]),
        lambda: PolyvecEmbeddings(ours.embedder, encode_kwargs="x"),
        lambda: PolyvecEmbeddings(ours.embedder, query_encode_kwargs=3),
        lambda: PolyvecEmbeddings("x", model_kwargs=3),
    ):
        with pytest.raises(InputError, match=r"expected|loaded|not a string"):
            call()
