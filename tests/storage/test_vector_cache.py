"""The cache returns a vector only for its text, model and prompt, and computes none twice."""

import hashlib
import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors.numpy import save

from polyvec import Embedder
from polyvec.data.tasks.sets import RetrievalSet, StsSet
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.errors import DamagedCacheWarning, DataError
from polyvec.evaluate.encoder import TaskEncoder
from polyvec.evaluate.tasks import Evaluator
from polyvec.interfaces import DenseVectors, EncodeReport
from polyvec.recipe import load_recipe
from polyvec.storage.vector_cache import EmbeddingCache, Entries, default_folder

TEXTS = ["a cat", "the dog sat", "boats", "a cat", "word " * 100]


@pytest.fixture
def embedder(tiny_bert):
    return Embedder.from_pretrained(tiny_bert)


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "cache")


@pytest.mark.equality
def test_cached_vectors_are_those_that_were_computed(embedder, cache, tmp_path):
    plain = TaskEncoder(embedder)
    first = TaskEncoder(embedder, cache=cache)
    expected = embedder.encode(TEXTS)
    assert_array_equal(plain.encode(TEXTS), expected)
    assert_array_equal(first.encode(TEXTS), expected)
    assert (first.work.num_texts, first.work.num_computed, first.work.num_truncated) == (5, 4, 1)
    # Another run, and a text more.
    second = TaskEncoder(embedder, cache=EmbeddingCache(tmp_path / "cache"))
    found = second.encode([*TEXTS[::-1], "new"])
    assert_array_equal(found[:5], expected[::-1])
    assert (second.work.num_computed, second.work.num_truncated) == (1, 1)


@pytest.mark.equality
def test_two_checkpoints_at_one_path_have_vectors_of_their_own(tiny_bert, cache, tmp_path):
    path = tmp_path / "model"
    found = []
    for seed in (1, 2):
        model = Embedder.from_pretrained(tiny_bert)
        with torch.no_grad():
            torch.manual_seed(seed)
            for parameter in model.backbone.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(path)
        again = Embedder.from_pretrained(path)
        found.append(TaskEncoder(again, cache=cache).encode(TEXTS))
        assert_array_equal(found[-1], again.encode(TEXTS))
    assert not np.allclose(found[0], found[1])


def test_a_changed_prompt_costs_the_texts_that_it_is_for(embedder, cache):
    corpus = {f"d{i}": f"text number {i}" for i in range(20)}
    data = RetrievalSet("toy", "test", corpus, {"q": "number 3"}, {"q": {"d3": 1}}, sha256="hash")

    def computed(prompts):
        embedder.prompt_table = PromptTable(prompts)
        return Evaluator(embedder, cache=cache).measure(data).result.num_computed

    assert computed({}) == 21
    assert computed({}) == 0
    assert computed({"query": "find: "}) == 1
    assert computed({"query": "find: ", "document": "read: "}) == 20
    assert computed({"toy-query": "find: ", "passage": "read: "}) == 0  # other names, equal words
    assert computed({"Retrieval": "any: "}) == 21


@pytest.mark.equality
def test_the_score_of_cached_vectors_is_the_score(embedder, cache):
    words = ["a cat", "the sea", "dogs", "one tree", "old men"]
    data = StsSet(
        "toy", "test", tuple(words), tuple(words[::-1]), (1.0, 2.0, 3.0, 2.5, 0.0), sha256="h"
    )
    scores = [Evaluator(embedder, cache=c).measure(data).result for c in (None, cache, cache)]
    assert scores[0].scores == scores[1].scores == scores[2].scores
    assert [result.num_computed for result in scores] == [5, 5, 0]


def test_names_of_prompts_go_from_the_task_to_the_kind(embedder):
    stored = {"query": "q", "STS": "kind", "sts12": "task", "STS-query": "kind and side"}
    embedder.prompt_table = PromptTable(stored)

    def used(role, *names):
        encoder = TaskEncoder(embedder, names=names)
        encoder.encode(["a"], role=role)
        return encoder.work.prompts[role or ""]

    assert used(None, "sts12", "STS") == "task"
    assert used(None, "other", "STS") == "kind"
    assert used("query", "other", "STS") == "kind and side"
    assert used("query", "other", "Retrieval") == "q"
    assert used(None, "other", "Retrieval") == ""


@pytest.mark.equality
def test_an_instruction_stands_behind_the_text_of_a_model_without_a_template(embedder):
    found = TaskEncoder(embedder).encode(["a cat"], role="query", instruction="be kind")
    assert_array_equal(found, embedder.encode(["a cat be kind"]))


@pytest.mark.equality
def test_a_damaged_shard_is_named_and_its_texts_are_encoded_again(embedder, cache, tmp_path):
    TaskEncoder(embedder, cache=cache).encode(TEXTS)
    (shard,) = (tmp_path / "cache").rglob("*.safetensors")
    whole = shard.read_bytes()
    narrow = save({"keys": np.zeros((2, 16), np.uint8), "vectors": np.zeros((2, 5)),
                   "cut": np.zeros(2, np.uint8)})  # fmt: skip
    for damaged in (b"broken", whole[:-1], b"", narrow):
        shard.write_bytes(damaged)
        again = TaskEncoder(embedder, cache=EmbeddingCache(tmp_path / "cache"))
        with pytest.warns(DamagedCacheWarning, match=f"{shard.name}: damaged cache file"):
            found = again.encode(TEXTS)
        assert_array_equal(found, embedder.encode(TEXTS))
        assert again.work.num_computed == 4
        for path in {*shard.parent.iterdir()} - {shard}:
            path.unlink()


def test_a_file_cannot_be_the_cache(tmp_path):
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(DataError, match="exists and is not a folder"):
        EmbeddingCache(tmp_path / "file")


def test_vectors_that_are_not_finite_are_not_cached(embedder, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Embedder,
        "encode_vectors",
        lambda self, texts, **options: (
            DenseVectors(np.full((len(texts), 32), np.nan, np.float32)),
            EncodeReport(),
        ),
    )
    TaskEncoder(embedder, cache=cache).encode(["a"])
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_the_folder_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYVEC_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("POLYVEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "polyvec" / "embeddings"


@pytest.mark.equality
def test_a_template_reads_an_instruction_only_where_it_has_a_place():
    model = load_recipe("prompteol").build("nano")
    encoder = TaskEncoder(model, names=("SciFact",))
    plain = encoder.encode(["a cat"], role="document")
    model.prompt_table = PromptTable({"SciFact": "find: "})
    assert_array_equal(encoder.encode(["a cat"], role="document"), plain)
    joined = encoder.encode(["a cat"], role="document", instruction="be kind")
    assert_array_equal(joined, encoder.encode(["a cat be kind"], role="document"))


def test_an_array_serves_as_entries_and_is_not_written(tmp_path):
    vectors = np.arange(8, dtype=np.float32).reshape(4, 2)
    entries = Entries(tmp_path / "new", 2)
    entries.include(["a", "b", "c"], vectors[:3])
    entries.put(["d"], vectors[3:], np.array([True]))
    hits = entries.get(["d", "x", "b"])
    assert_array_equal(hits.rows, [0, 2])
    assert_array_equal(hits.vectors, vectors[[3, 1]])
    assert_array_equal(hits.truncated, [True, False])
    assert len(entries) == 4 and len(Entries(tmp_path / "new", 2)) == 1


def test_the_file_format_is_that_of_existing_caches(tmp_path):
    """A cache of years must not be lost by a change of names."""
    key = hashlib.blake2b(b"a cat", digest_size=16).digest()
    folder = tmp_path / ("0" * 32) / hashlib.sha256(b'["read: ", null]').hexdigest()[:16]
    folder.mkdir(parents=True)
    shard = save({"keys": np.frombuffer(key, np.uint8).reshape(1, 16),
                  "vectors": np.ones((1, 3), np.float32), "cut": np.ones(1, np.uint8)})  # fmt: skip
    (folder / "any.safetensors").write_bytes(shard)
    hits = EmbeddingCache(tmp_path).entries("0" * 64, ["read: ", None], 3).get(["a cat"])
    assert_array_equal(hits.vectors, [[1, 1, 1]])
    assert hits.truncated.tolist() == [True]
