"""Saving over a model: its files are replaced, everything else in the folder stays."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tokenizer
from folders import bert, modules
from late_folders import pylate
from sentence_transformers import SentenceTransformer

from polyvec import Embedder, MultiVectorEmbedder
from polyvec.embed.projection.dense import Dense
from polyvec.errors import DataError

MINE = [
    "thesis.tex", ".git/config", "checkpoint-500/optimizer.pt", "checkpoint-500/model.safetensors",
    "2_notes/today.md", "1_Pooling/why_mean.md", "2_Dense/README.txt", "model_best.bin",
    "model-old.safetensors", "2026_results", "vocab.txt.bak", "onnx/model.onnx",
]  # fmt: skip


def put_mine(folder):
    for name in MINE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("/nowhere")


def assert_mine(folder):
    assert [name for name in MINE if (folder / name).read_text() != name] == []
    assert (folder / "empty").is_dir() and (folder / "link").readlink() == Path("/nowhere")


def encoder(folder):
    bert(folder)
    modules(folder, "mean")
    return Embedder.from_pretrained(folder)


@pytest.mark.parametrize("saved_by", ["another program", "polyvec"])
def test_files_that_are_not_the_models_stay(tmp_path, saved_by):
    model = encoder(tmp_path / "model")
    dense = Embedder.from_parts(model.backbone, model.text_tokenizer, projections=[Dense(32, 8)])
    dense.save_pretrained(tmp_path / "model")
    if saved_by == "another program":
        (tmp_path / "model" / "polyvec_checksums.json").unlink()
    put_mine(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    assert_mine(tmp_path / "model")
    assert not (tmp_path / "model" / "2_Dense" / "model.safetensors").exists(), "of the old model"
    assert not (tmp_path / "model" / "2_Dense" / "config.json").exists()
    again = Embedder.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(again.encode("a cat"), model.encode("a cat"))
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(theirs.encode("a cat"), model.encode("a cat"), atol=1e-5)


def test_files_beside_a_late_interaction_model_stay(tmp_path):
    pylate(tmp_path / "model")
    model = MultiVectorEmbedder.from_pretrained(tmp_path / "model")
    put_mine(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    assert_mine(tmp_path / "model")


def test_what_would_be_read_with_the_new_model_goes(tmp_path):
    """Shards, an adapter, another tokenizer's words: of the model that is replaced."""
    model = encoder(tmp_path / "model")
    right = model.encode("a cat")
    old = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "vocab.txt"]
    for name in (*old, "adapter_config.json", "adapter_model.safetensors", "router_config.json"):
        (tmp_path / "model" / name).write_text("{}")
    model.save_pretrained(tmp_path / "model")
    assert not any((tmp_path / "model" / name).exists() for name in old)
    np.testing.assert_array_equal(
        Embedder.from_pretrained(tmp_path / "model").encode("a cat"), right
    )


@pytest.mark.parametrize("content", ["[", "[5]", '{"a": 1}'])
def test_a_damaged_list_of_modules_is_replaced(tmp_path, content):
    model = encoder(tmp_path / "model")
    (tmp_path / "model" / "modules.json").write_text(content)
    put_mine(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    assert_mine(tmp_path / "model")
    Embedder.from_pretrained(tmp_path / "model")


def test_the_working_directory_is_refused(tmp_path, monkeypatch):
    model = encoder(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    for path in (".", tmp_path / "model"):
        with pytest.raises(DataError, match="the working directory cannot be replaced"):
            model.save_pretrained(path)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before
    model.save_pretrained("inside")
    assert Embedder.from_pretrained("inside").encode("a cat").shape == (32,)


def test_a_table_is_saved_twice(tmp_path):
    """Of words, in both formats; the second save finds the folder of the first."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    words = tokenizer()
    table = StaticEmbedding(words, embedding_weights=torch.randn(len(words), 8))
    SentenceTransformer(modules=[table], device="cpu").save(str(tmp_path / "static"))
    model = Embedder.from_pretrained(tmp_path / "static")
    for _ in "ab":
        model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "static")
    shutil.copytree(tmp_path / "saved", tmp_path / "potion")
    (tmp_path / "potion" / "modules.json").unlink()
    (tmp_path / "potion" / "config.json").write_text(json.dumps({"model_type": "model2vec"}))
    potion = Embedder.from_pretrained(tmp_path / "potion")
    for folder in ("potion", "potion", "new", "new"):
        potion.save_pretrained(tmp_path / folder)
        found = Embedder.from_pretrained(tmp_path / folder)
        np.testing.assert_array_equal(found.encode("a cat"), potion.encode("a cat"))


def test_another_programs_config_is_no_model(tmp_path):
    """Many programs have a config.json: it was replaced, and all that it said was lost."""
    model = encoder(tmp_path / "model")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "config.json").write_text('{"port": 80}')
    (tmp_path / "app" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"contains no modules\.json; not overwritten"):
        model.save_pretrained(tmp_path / "app")
    assert (tmp_path / "app" / "config.json").read_text() == '{"port": 80}'


@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "[", "{}"])
def test_a_models_config_is_replaced(tmp_path, content):
    """Damaged, too, beside weights; without them only what describes a model."""
    model = encoder(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(content)
    (tmp_path / "model" / "modules.json").unlink()
    model.save_pretrained(tmp_path / "model")
    Embedder.from_pretrained(tmp_path / "model")


def test_a_path_below_a_file_is_named(tmp_path):
    model = encoder(tmp_path / "model")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"thesis\.tex is a file, not a folder"):
        model.save_pretrained(tmp_path / "thesis.tex" / "model")
