"""The embedders inside haystack-ai, beside sentence-transformers' vectors."""

import asyncio

import pytest

from polyvec import Embedder
from polyvec.errors import InputError

pytest.importorskip("haystack", reason="needs the extra 'integrations'")

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from polyvec.integrations.haystack import PolyvecDocumentEmbedder, PolyvecTextEmbedder

TEXTS = ["cats sleep", "the Danube flows through ten countries", "rain"]


def same(found, wanted):
    return found == pytest.approx(wanted, abs=2e-6)


def test_queries_and_documents_have_their_prompts(prompted, reference):
    query = PolyvecTextEmbedder(prompted).run(text="a river")["embedding"]
    assert same(query, reference("encode_query", "a river"))
    given = [Document(content=text) for text in TEXTS]
    found = PolyvecDocumentEmbedder(prompted, batch_size=2).run(documents=given)["documents"]
    for each, wanted in zip(found, reference("encode_document", TEXTS), strict=True):
        assert same(each.embedding, wanted)
    assert [each.content for each in found] == TEXTS
    assert given[0].embedding is None, "the documents given are unchanged"
    assert PolyvecDocumentEmbedder(prompted).run(documents=[]) == {"documents": []}


def test_metadata_and_prompt(prompted, reference):
    ours = PolyvecDocumentEmbedder(
        prompted,
        prompt="text: ",
        meta_fields_to_embed=["title", "absent", "year"],
        embedding_separator=" | ",
        encode_kwargs={"truncate_dim": 8},
    )
    document = Document(content="rain", meta={"title": "Weather", "year": 1999, "page": 3})
    (found,) = ours.run(documents=[document])["documents"]
    wanted = reference(
        "encode",
        "Weather | 1999 | rain",
        prompt="text: ",
        truncate_dim=8,
        normalize_embeddings=True,
    )
    assert same(found.embedding, wanted)
    query = PolyvecTextEmbedder(prompted, prompt="").run(text="rain")["embedding"]
    assert same(query, reference("encode", "rain", prompt=""))


def test_async_gives_the_same(prompted):
    query, documents = PolyvecTextEmbedder(prompted), PolyvecDocumentEmbedder(prompted)
    assert asyncio.run(query.run_async(text="rain")) == query.run(text="rain")
    given = [Document(content="rain")]
    found = asyncio.run(documents.run_async(documents=given))
    assert (
        found["documents"][0].embedding == documents.run(documents=given)["documents"][0].embedding
    )


def pipeline(prompted) -> tuple[Pipeline, InMemoryDocumentStore]:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    made = Pipeline()
    made.add_component("query", PolyvecTextEmbedder(str(prompted), batch_size=4))
    made.add_component("search", InMemoryEmbeddingRetriever(store, top_k=1))
    made.connect("query.embedding", "search.query_embedding")
    return made, store


def test_a_pipeline_searches_and_is_stored(prompted):
    made, store = pipeline(prompted)
    embedder = Embedder(prompted)
    documents = PolyvecDocumentEmbedder(embedder, meta_fields_to_embed=["title"])
    store.write_documents(documents.run([Document(content=text) for text in TEXTS])["documents"])
    (hit,) = made.run({"query": {"text": "a river"}})["search"]["documents"]
    scores = embedder.similarity(embedder.encode_query("a river"), embedder.encode_document(TEXTS))[
        0
    ]
    assert hit.content == TEXTS[int(scores.argmax())]

    again = Pipeline.loads(made.dumps(), allowed_modules=["polyvec.*"])
    assert again.to_dict() == made.to_dict()
    assert again.get_component("query").run("rain") == made.get_component("query").run("rain")
    stored = PolyvecDocumentEmbedder(prompted, meta_fields_to_embed=["title"], progress_bar=False)
    restored = PolyvecDocumentEmbedder.from_dict(stored.to_dict())
    assert restored.to_dict() == stored.to_dict()
    assert restored.meta_fields_to_embed == ["title"]


def test_mistakes_are_told(prompted):
    embedder = Embedder(prompted)
    for call in (
        lambda: PolyvecTextEmbedder(embedder).to_dict(),
        lambda: PolyvecTextEmbedder(embedder).run(text=["a"]),
        lambda: PolyvecDocumentEmbedder(embedder).run(documents=["a"]),
        lambda: PolyvecDocumentEmbedder(embedder).run(documents="a"),
        lambda: PolyvecDocumentEmbedder(embedder, meta_fields_to_embed="title"),
        lambda: PolyvecDocumentEmbedder(embedder, meta_fields_to_embed=3),
        lambda: PolyvecDocumentEmbedder(embedder, meta_fields_to_embed=[3]),
        lambda: PolyvecDocumentEmbedder(embedder, embedding_separator=3),
        lambda: PolyvecTextEmbedder(embedder, encode_kwargs="x"),
        lambda: PolyvecTextEmbedder("x", model_kwargs=3),
    ):
        with pytest.raises(InputError, match=r"expected|give the model"):
            call()
