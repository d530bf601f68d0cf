"""PolyvecEmbedding inside llama-index-core, beside sentence-transformers' vectors."""

import asyncio

import pytest

from polyvec import Embedder
from polyvec.errors import InputError, ModelError

pytest.importorskip("llama_index.core", reason="needs the extra 'integrations'")

from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode

from polyvec.integrations.llama_index import PolyvecEmbedding

TEXTS = ["cats sleep", "the Danube flows through ten countries", "rain"]


def same(found, wanted):
    return found == pytest.approx(wanted, abs=2e-6)


def test_queries_and_texts_have_their_prompts(prompted, reference):
    ours = PolyvecEmbedding(prompted, embed_batch_size=2, model_kwargs={"device": "cpu"})
    assert same(ours.get_query_embedding("a river"), reference("encode_query", "a river"))
    wanted = reference("encode_document", TEXTS)
    assert same(ours.get_text_embedding(TEXTS[0]), wanted[0])
    for found, each in zip(ours.get_text_embedding_batch(TEXTS), wanted, strict=True):
        assert same(found, each)


def test_instructions_replace_the_prompts(prompted, reference):
    ours = PolyvecEmbedding(prompted, query_instruction="find: ", text_instruction="")
    assert same(ours.get_query_embedding("rain"), reference("encode", "rain", prompt="find: "))
    assert same(ours.get_text_embedding("rain"), reference("encode", "rain", prompt=""))


def test_async_gives_the_same(prompted):
    ours = PolyvecEmbedding(prompted)
    assert asyncio.run(ours.aget_query_embedding("rain")) == ours.get_query_embedding("rain")
    assert asyncio.run(ours.aget_text_embedding("rain")) == ours.get_text_embedding("rain")
    batch = asyncio.run(ours.aget_text_embedding_batch(TEXTS))
    assert batch == ours.get_text_embedding_batch(TEXTS)


def test_nodes_are_embedded_with_their_metadata(prompted, reference):
    ours = PolyvecEmbedding(prompted)
    node = TextNode(text="rain", metadata={"title": "Weather", "page": 3})
    node.excluded_embed_metadata_keys = ["page"]
    (found,) = IngestionPipeline(transformations=[ours]).run(nodes=[node])
    assert same(found.embedding, reference("encode_document", "title: Weather\n\nrain"))


def test_a_dict_makes_the_same_object(prompted):
    ours = PolyvecEmbedding(
        prompted, embed_batch_size=3, query_instruction="find: ", encode_kwargs={"truncate_dim": 8}
    )
    again = PolyvecEmbedding.from_dict(ours.to_dict())
    assert PolyvecEmbedding.from_json(ours.to_json()).to_dict() == again.to_dict() == ours.to_dict()
    assert again.get_query_embedding("rain") == ours.get_query_embedding("rain")
    assert again.embed_batch_size == 3 and len(again.get_query_embedding("rain")) == 8


def test_other_weights_are_another_object(tmp_path, prompted):
    """A pipeline's cache must not give the vectors of a model of before; a dict is refused."""
    embedder = Embedder(prompted)
    embedder.save_pretrained(tmp_path / "model")
    before = PolyvecEmbedding(tmp_path / "model").to_dict()
    next(embedder.backbone.parameters()).data.mul_(2)
    embedder.save_pretrained(tmp_path / "model")
    assert PolyvecEmbedding(tmp_path / "model").to_dict() != before
    with pytest.raises(ModelError, match="not the model that was saved"):
        PolyvecEmbedding.from_dict(before)


def test_an_embedder_in_memory_has_a_dict_that_says_so(prompted):
    """A pipeline hashes the dict; an object cannot be made of it."""
    embedder = Embedder(prompted)
    ours = PolyvecEmbedding(embedder)
    (found,) = IngestionPipeline(transformations=[ours]).run(nodes=[TextNode(text="rain")])
    assert found.embedding == ours.get_text_embedding("rain")
    assert ours.to_dict()["model_name"] == "Embedder in memory"
    with pytest.raises(InputError, match="had no folder; save that with save_pretrained"):
        PolyvecEmbedding.from_dict(ours.to_dict())


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"embed_batch_size": "x"}, "embed_batch_size is 'x': input should be a valid integer"),
        ({"embed_batch_size": 0}, "embed_batch_size is '0': input should be greater than 0"),
        ({"query_instruction": 3}, "query_instruction is '3': input should be a valid string"),
        ({"encode_kwargs": "x"}, "encode_kwargs is 'x': input should be a valid dict"),
        ({"query_instructions": "find: "}, "Did you mean 'query_instruction'"),
        ({"model_kwargs": "x"}, "model_kwargs is 'x', expected a table"),
        ({"fingerprint": 3}, "fingerprint is 3"),
    ],
)
def test_fields_of_a_wrong_kind_are_one_line(prompted, fields, match):
    with pytest.raises(InputError, match=match) as caught:
        PolyvecEmbedding(prompted, **fields)
    assert "\n" not in str(caught.value)
