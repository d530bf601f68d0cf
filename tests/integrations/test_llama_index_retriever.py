"""An index as llama-index-core's retriever, and in a query engine's place."""

import asyncio

import pytest

from polyvec import Embedder
from polyvec.errors import DataError

pytest.importorskip("llama_index.core", reason="needs the extra 'integrations'")
pytest.importorskip("lancedb", reason="needs the extra 'index'")

from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import Document, TextNode

from polyvec.integrations.llama_index import PolyvecRetriever

TEXTS = ["cats sleep", "the Danube flows through ten countries", "rain"]


@pytest.fixture
def retriever(prompted, tmp_path):
    made = PolyvecRetriever(tmp_path / "index", str(prompted), similarity_top_k=3)
    nodes = [
        TextNode(id_=str(page), text=text, metadata={"page": page})
        for page, text in enumerate(TEXTS)
    ]
    assert made.add(nodes) == ["0", "1", "2"]
    return made


def test_the_ranking_is_the_embedders(prompted, retriever):
    embedder = Embedder(prompted)
    scores = embedder.similarity(embedder.encode_query("a river"), embedder.encode_document(TEXTS))
    order = scores[0].argsort(descending=True).tolist()
    found = retriever.retrieve("a river")
    assert [each.node.get_content() for each in found] == [TEXTS[place] for place in order]
    assert [each.score for each in found] == pytest.approx(scores[0][order].tolist(), abs=1e-5)
    assert [each.node.metadata for each in found] == [{"page": place} for place in order]
    later = asyncio.run(retriever.aretrieve("a river"))
    assert [each.node_id for each in later] == [each.node_id for each in found]
    kept = SimilarityPostprocessor(similarity_cutoff=found[0].score).postprocess_nodes(found)
    assert [each.node_id for each in kept] == [found[0].node_id]


def test_options_and_documents(prompted, retriever, tmp_path):
    retriever.index.close()
    words = PolyvecRetriever(tmp_path / "index", mode="words", filter="page >= 1")
    assert [each.node_id for each in words.retrieve("rain cats")] == ["2"]
    splitter = SentenceSplitter(chunk_size=60, chunk_overlap=0)
    text = "One sentence about volcanoes. " * 20
    nodes = splitter.get_nodes_from_documents([Document(text=text, metadata={"page": 7})])
    assert len(words.add(nodes)) > 1
    assert {each.node.metadata["page"] for each in words.retrieve("volcanoes")} == {7}
    with pytest.raises(DataError, match="field 'tags' is list"):
        words.add([TextNode(text="a", metadata={"tags": []})])
