"""An index as Haystack's document store, and its retriever in a pipeline."""

import asyncio

import pytest

from polyvec import Embedder
from polyvec.errors import DataError, InputError

pytest.importorskip("haystack", reason="needs the extra 'integrations'")
pytest.importorskip("lancedb", reason="needs the extra 'index'")

from haystack import Document, Pipeline
from haystack.components.writers import DocumentWriter
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DuplicatePolicy

from polyvec.integrations.haystack_store import PolyvecDocumentStore, PolyvecRetriever

DOCUMENTS = [
    Document(id="a", content="cats sleep", meta={"page": 1, "lang": "en"}),
    Document(id="b", content="the Danube flows through ten countries", meta={"page": 2}),
    Document(id="c", content="rain", meta={"page": 3, "lang": "de"}),
]
FILTERS = (
    {"field": "meta.page", "operator": ">=", "value": 2},
    {"field": "meta.lang", "operator": "==", "value": "en"},
    {"field": "meta.lang", "operator": "!=", "value": "en"},
    {"field": "meta.lang", "operator": "==", "value": None},
    {"field": "meta.lang", "operator": "in", "value": ["de", "fr"]},
    {"field": "meta.page", "operator": "not in", "value": [1, 9]},
    {
        "operator": "OR",
        "conditions": [
            {"field": "meta.page", "operator": "<", "value": 2},
            {"operator": "NOT", "conditions": [{"field": "lang", "operator": "!=", "value": "de"}]},
        ],
    },
)


@pytest.fixture
def store(prompted, tmp_path):
    made = PolyvecDocumentStore(str(tmp_path / "index"), str(prompted))
    assert made.write_documents(DOCUMENTS) == 3
    return made


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_let_through_what_haystacks_own_store_does(store, filters):
    reference = InMemoryDocumentStore()
    reference.write_documents(DOCUMENTS)
    wanted = {each.id for each in reference.filter_documents(filters)}
    assert {each.id for each in store.filter_documents(filters)} == wanted
    found = PolyvecRetriever(store).run("rain", filters)["documents"]
    assert {each.id for each in found} == wanted


def test_a_pipeline_writes_searches_and_is_stored(prompted, store):
    writing = Pipeline()
    writing.add_component("writer", DocumentWriter(store, policy=DuplicatePolicy.OVERWRITE))
    writing.run(
        {"writer": {"documents": [Document(id="a", content="dogs bark", meta={"page": 9})]}}
    )
    assert store.count_documents() == 3
    made = Pipeline()
    made.add_component("search", PolyvecRetriever(store, top_k=2))
    found = made.run({"search": {"query": "a river"}})["search"]["documents"]
    texts = ["dogs bark", *(each.content for each in DOCUMENTS[1:])]
    embedder = Embedder(prompted)
    scores = embedder.similarity(embedder.encode_query("a river"), embedder.encode_document(texts))
    order = scores[0].argsort(descending=True).tolist()[:2]
    assert [each.content for each in found] == [texts[place] for place in order]
    assert [each.score for each in found] == pytest.approx(scores[0][order].tolist(), abs=1e-5)
    again = Pipeline.loads(made.dumps(), allowed_modules=["polyvec.*"])
    assert again.run({"search": {"query": "a river"}})["search"]["documents"] == found
    assert asyncio.run(PolyvecRetriever(store, top_k=2).run_async("a river"))["documents"] == found
    words = PolyvecRetriever(store, mode="words").run("rain")["documents"]
    assert [each.id for each in words] == ["c"]


def test_policies_and_mistakes(store):
    with pytest.raises(DuplicateDocumentError, match="'a'"):
        store.write_documents([Document(id="new", content="x"), DOCUMENTS[0]])
    assert store.count_documents() == 3
    assert store.write_documents([*DOCUMENTS, Document(content="x")], DuplicatePolicy.SKIP) == 1
    store.delete_documents(["a", "absent"])
    assert store.count_documents() == 3
    with pytest.raises(InputError, match="no content to embed"):
        store.write_documents([Document()])
    with pytest.raises(DataError, match="field 'tags' is list"):
        store.write_documents([Document(content="y", meta={"tags": []})])
    with pytest.raises(InputError, match="operator '~' is not known"):
        store.filter_documents({"field": "meta.page", "operator": "~", "value": 1})
    with pytest.raises(InputError, match="by its place"):
        PolyvecDocumentStore(store.index).to_dict()
