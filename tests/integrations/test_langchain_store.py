"""An index as langchain-core's VectorStore, and what LangChain builds on one."""

import asyncio

import pytest

from polyvec import Embedder
from polyvec.errors import DataError, IndexStoreError, InputError

pytest.importorskip("langchain_core", reason="needs the extra 'integrations'")
pytest.importorskip("lancedb", reason="needs the extra 'index'")

from langchain_core.documents import Document

from polyvec.integrations.langchain import PolyvecEmbeddings, PolyvecVectorStore

TEXTS = ["cats sleep", "the Danube flows through ten countries", "rain in spring", "rain in autumn"]
METADATA = [{"page": 1}, {"page": 2, "lang": "en"}, {"page": 3, "lang": "de"}, {"page": 4}]


@pytest.fixture
def store(prompted, tmp_path):
    return PolyvecVectorStore.from_texts(
        TEXTS, Embedder(prompted), METADATA, ids=list("abcd"), index=tmp_path / "index"
    )


def test_the_ranking_is_the_embedders(prompted, store):
    found = store.similarity_search_with_score("a river", k=4)
    embedder = Embedder(prompted)
    scores = embedder.similarity(embedder.encode_query("a river"), embedder.encode_document(TEXTS))
    order = scores[0].argsort(descending=True).tolist()
    assert [each.page_content for each, _ in found] == [TEXTS[place] for place in order]
    assert [score for _, score in found] == pytest.approx(scores[0][order].tolist(), abs=1e-5)
    best = found[0][0]
    assert (best.id, best.metadata) == ("abcd"[order[0]], METADATA[order[0]])


def test_filters_words_and_retrievers(store):
    def ids(documents):
        return {each.id for each in documents}

    assert ids(store.similarity_search("rain", k=4, filter={"page": {"$gte": 3}})) == {"c", "d"}
    assert ids(store.similarity_search("rain", k=4, filter='lang = "de"')) == {"c"}
    assert ids(store.similarity_search("spring", k=1, mode="words")) == {"c"}
    retriever = store.as_retriever(search_kwargs={"k": 2, "filter": "page < 3"})
    assert ids(retriever.invoke("rain")) == {"a", "b"}
    assert ids(asyncio.run(retriever.ainvoke("rain"))) == {"a", "b"}
    every = store.as_retriever(search_type="mmr", search_kwargs={"k": 3}).invoke("rain")
    assert len(ids(every)) == 3
    scored = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.0, "k": 4}
    )
    assert len(scored.invoke("rain")) == 4


def test_documents_are_added_replaced_and_deleted(prompted, store, tmp_path):
    assert store.add_documents([Document(page_content="new", id="a"), Document("x")])[0] == "a"
    assert [each.page_content for each in store.get_by_ids(["a", "absent"])] == ["new"]
    assert store.delete(["a"]) is True
    assert store.delete(["a"]) is False
    assert len(store.index) == 4
    store.index.close()
    again = PolyvecVectorStore(tmp_path / "index", PolyvecEmbeddings(prompted))
    assert len(again.index) == 4
    assert again.embeddings.embed_query("rain") == store.embeddings.embed_query("rain")


def test_mistakes_are_told(prompted, store, tmp_path, tiny_bert):
    with pytest.raises(DataError, match="field 'tags' is list"):
        store.add_texts(["a"], [{"tags": ["x"]}])
    with pytest.raises(InputError, match="2 texts, 1 ids"):
        store.add_texts(["a", "b"], ids=["1"])
    with pytest.raises(InputError, match="delete needs ids"):
        store.delete()
    with pytest.raises(InputError, match="no field 'pages'"):
        store.similarity_search("rain", filter={"pages": 1})
    with pytest.raises(IndexStoreError, match="another model"):
        PolyvecVectorStore(tmp_path / "index", tiny_bert)
    with pytest.raises(IndexStoreError, match="no index"):
        PolyvecVectorStore(tmp_path / "absent")
    with pytest.raises(InputError, match="give it as `model`"):
        PolyvecVectorStore(tmp_path / "index")
    with pytest.raises(InputError, match="expected an Index"):
        PolyvecVectorStore(3)
