"""Static word tables: read, pooled and written as sentence-transformers does."""

import json

import numpy as np
import pytest
import torch
from families import tokenizer
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn

from polyvec import Embedder
from polyvec.errors import ModelError

TEXTS = ["a cat sat on the mat", "dog", "two very long text of cats and </s>"]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    words = tokenizer()
    table = StaticEmbedding(words, embedding_weights=torch.randn(len(words), 16))
    SentenceTransformer(modules=[table], device="cpu").save(str(tmp_path / "static"))
    return tmp_path / "static"


@pytest.mark.equality
def test_the_vectors_are_theirs_and_survive_saving(folder, tmp_path):
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = Embedder.from_pretrained(folder)
    assert_allclose(ours.encode(TEXTS[:2]), theirs.encode(TEXTS[:2]), atol=1e-6)
    assert str(ours.backbone.verdict) == "without layers: each token sees itself only"
    ours.save_pretrained(tmp_path / "again")
    assert_array_equal(
        Embedder.from_pretrained(tmp_path / "again").encode(TEXTS), ours.encode(TEXTS)
    )
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert_allclose(again.encode(TEXTS[:2]), ours.encode(TEXTS[:2]), atol=1e-6)


def test_a_text_alone_is_the_text_in_a_batch(folder):
    model = Embedder.from_pretrained(folder)
    together = model.encode(TEXTS)
    assert_allclose(np.stack([model.encode(text) for text in TEXTS]), together, atol=1e-6)


def test_folded_tables_of_model2vec(folder):
    """Rows shared by tokens, and a weight for each token."""
    size = len(tokenizer())
    rows, mapping = torch.randn(5, 8), torch.arange(size) % 5
    weights = torch.rand(size)
    save_file(
        {"embeddings": rows, "mapping": mapping, "weights": weights}, folder / "model.safetensors"
    )
    model = Embedder.from_pretrained(folder)
    full = nn.Embedding.from_pretrained(rows[mapping] * weights[:, None])
    ids = torch.tensor(tokenizer()("a cat", add_special_tokens=False)["input_ids"])
    assert_allclose(model.encode("a cat"), full(ids).mean(0), atol=1e-6)


def test_what_is_no_table_is_refused(folder):
    save_file({"something": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"expected a tensor embedding\.weight or embeddings"):
        Embedder.from_pretrained(folder)
    save_file({"embedding.weight": torch.zeros(2, 4)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="2 rows for"):
        Embedder.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Embedder.from_pretrained(folder)
    modules = json.loads((folder / "modules.json").read_text())
    assert modules[0]["type"].endswith("StaticEmbedding")
