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
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from polyvec import Embedder
from polyvec.errors import ModelError, TruncationWarning

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
    size = len(tokenizer())
    for tensors, message in (
        ({"embedding.weight": torch.zeros(size)}, r"expected \[V, D\]"),
        ({"embeddings": torch.zeros(3, 4), "mapping": torch.arange(size)}, "out of bounds"),
        ({"embeddings": torch.zeros(size, 4), "weights": torch.zeros(3)}, "must match"),
    ):
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(ModelError, match=message):
            Embedder.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Embedder.from_pretrained(folder)
    modules = json.loads((folder / "modules.json").read_text())
    assert modules[0]["type"].endswith("StaticEmbedding")


# ---- model2vec ----------------------------------------------------------------------------------


def potion(folder, *, rows=None, unknown="<unk>", write_modules=True, **config):
    """A folder as the package model2vec writes it; the rows of its tokens."""
    folder.mkdir()
    backend = tokenizer().backend_tokenizer
    if unknown is None:
        vocab = {**backend.get_vocab()}
        backend = Tokenizer(models.BPE(vocab, []))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(folder / "tokenizer.json"))
    torch.manual_seed(7)
    rows = torch.randn(backend.get_vocab_size(), 16) if rows is None else rows
    save_file({"embeddings": rows}, folder / "model.safetensors")
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], **config}
    (folder / "config.json").write_text(json.dumps(config))
    kind = "sentence_transformers.models."
    listed = [{"idx": 0, "name": "0", "path": ".", "type": kind + "StaticEmbedding"}]
    if config.get("normalize"):
        more = {"idx": 1, "name": "1", "path": "1_Normalize", "type": kind + "Normalize"}
        listed.append(more)
    if write_modules:
        (folder / "modules.json").write_text(json.dumps(listed))
    return rows, backend


def by_hand(rows, backend, texts, *, normalize=False, max_length=512):
    """model2vec 0.10's own arithmetic: its StaticModel.encode gives the same, see below."""
    median = int(np.median([len(token) for token in backend.get_vocab()]))
    out = []
    for text in texts:
        cut = text if max_length is None else text[: max_length * median]
        ids = backend.encode(cut, add_special_tokens=False).ids[:max_length]
        ids = [i for i in ids if i != backend.token_to_id("<unk>")]
        vector = rows[ids].float().mean(0).numpy() if ids else np.zeros(rows.shape[1])
        out.append(vector / (np.linalg.norm(vector) + 1e-32) if normalize else vector)
    return np.stack(out)


# Upper case and digits are known letter by letter; @ is not.
MODEL2VEC_TEXTS = ["the cat @ sat", "@ @", "", "a very long text of two cats", "looks@nobody"]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("write_modules", [False, True])
def test_model2vec_folders_drop_unknown_words(normalize, write_modules, tmp_path):
    folder = tmp_path / "potion"
    rows, backend = potion(folder, normalize=normalize, write_modules=write_modules)
    right = by_hand(rows, backend, MODEL2VEC_TEXTS, normalize=normalize)
    ours = Embedder.from_pretrained(folder)
    assert_allclose(ours.encode(MODEL2VEC_TEXTS), right, atol=1e-6)
    ours.save_pretrained(tmp_path / "again")
    again = Embedder.from_pretrained(tmp_path / "again")
    assert_allclose(again.encode(MODEL2VEC_TEXTS), right, atol=1e-6)
    assert again.fingerprint() == ours.fingerprint()
    # sentence-transformers would average unknown words in, so it must not load this folder.
    with pytest.raises(Exception, match="polyvec"):
        SentenceTransformer(str(tmp_path / "again"), device="cpu")


def test_model2vec_reads_512_tokens_unless_told_otherwise(tmp_path):
    rows, backend = potion(tmp_path / "potion")
    long = ["cat " * 600 + "dog", "cat" + " " * 2000 + "dog"]
    ours = Embedder.from_pretrained(tmp_path / "potion")
    with pytest.warns(TruncationWarning, match="2 of 2 texts"):
        found = ours.encode(long)
    assert_allclose(found, by_hand(rows, backend, long), atol=1e-6)
    ours.max_seq_length = None
    assert_allclose(ours.encode(long), by_hand(rows, backend, long, max_length=None), atol=1e-6)
    rows, backend = potion(tmp_path / "four", max_length=4)
    found = Embedder.from_pretrained(tmp_path / "four").encode(TEXTS, truncate="silent")
    assert_allclose(found, by_hand(rows, backend, TEXTS, max_length=4), atol=1e-6)
    rows, backend = potion(tmp_path / "all", max_length=None)
    found = Embedder.from_pretrained(tmp_path / "all").encode(long)
    assert_allclose(found, by_hand(rows, backend, long, max_length=None), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.float64])
def test_stored_dtypes(dtype, tmp_path):
    rows = (torch.randn(len(tokenizer()), 8) * 40).to(dtype)
    rows, backend = potion(tmp_path / "potion", rows=rows, normalize=True)
    found = Embedder.from_pretrained(tmp_path / "potion").encode(MODEL2VEC_TEXTS)
    assert_allclose(found, by_hand(rows, backend, MODEL2VEC_TEXTS, normalize=True), atol=1e-6)


def test_the_package_model2vec_agrees(tmp_path):
    model2vec = pytest.importorskip("model2vec")
    rows, backend = potion(tmp_path / "potion", normalize=False)
    texts = [*MODEL2VEC_TEXTS, "cat " * 600 + "dog", "cat" + " " * 2000 + "dog"]
    theirs = model2vec.StaticModel.from_pretrained(tmp_path / "potion").encode(texts)
    assert_allclose(by_hand(rows, backend, texts), theirs, atol=1e-5)
    ours = Embedder.from_pretrained(tmp_path / "potion")
    assert_allclose(ours.encode(texts, truncate="silent"), theirs, atol=1e-5)
    ours.save_pretrained(tmp_path / "again")
    again = model2vec.StaticModel.from_pretrained(tmp_path / "again")
    assert_allclose(again.encode(texts), theirs, atol=1e-5)


@pytest.mark.equality
def test_static_folders_of_sentence_transformers_keep_unknown_words(folder, tmp_path):
    """And a text without words has zeros; the table may be in a folder of its own."""
    texts = [*TEXTS[:2], "the @ cat", "@", "", " "]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert_allclose(Embedder.from_pretrained(folder).encode(texts), theirs, atol=1e-6)
    inside = folder / "0_StaticEmbedding"
    inside.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).rename(inside / name)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = inside.name
    (folder / "modules.json").write_text(json.dumps(listed))
    assert_allclose(SentenceTransformer(str(folder)).encode(texts), theirs, atol=1e-6)
    assert_allclose(Embedder.from_pretrained(folder).encode(texts), theirs, atol=1e-6)


@pytest.mark.equality
@pytest.mark.parametrize("direction", ["left", "right"])
def test_the_truncation_of_tokenizer_json_is_obeyed_and_kept(direction, folder, tmp_path):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(3, direction=direction)
    backend.save(str(folder / "tokenizer.json"))
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS[:2])
    ours = Embedder.from_pretrained(folder)
    assert_allclose(ours.encode(TEXTS[:2], truncate="silent"), theirs, atol=1e-6)
    ours.save_pretrained(tmp_path / "again")
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert_allclose(again.encode(TEXTS[:2]), theirs, atol=1e-6)


def test_a_tokenizer_without_an_unknown_token(tmp_path):
    rows, backend = potion(tmp_path / "potion", unknown=None, max_length=None)
    found = Embedder.from_pretrained(tmp_path / "potion")
    assert_allclose(
        found.encode(["a b c", "§"]), by_hand(rows, backend, ["a b c", "§"], max_length=None),
        atol=1e-6,
    )  # fmt: skip
    found.save_pretrained(tmp_path / "again")  # nothing differs, so sentence-transformers loads it
    theirs = SentenceTransformer(str(tmp_path / "again"), device="cpu").encode(["a b c", "§"])
    assert_allclose(theirs, found.encode(["a b c", "§"]), atol=1e-6)
