"""Several embedders as one ranking."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyvec import Embedder
from polyvec.cli import main
from polyvec.errors import InputError, ModelError, SettingsError
from polyvec.evaluate.tasks import evaluate
from polyvec.index.fusion import min_max_fusion
from polyvec.index.hybrid import HybridEmbedder
from polyvec.recipe import load_recipe

TEXTS = ["a cat", "the dog sat", "boats on a river", "bread", "a stone"]


@pytest.fixture
def hybrid(tiny_bert):
    one, two = (Embedder.from_pretrained(tiny_bert) for _ in range(2))
    two.similarity_fn_name = "euclidean"
    two.truncate_dim = 16
    return HybridEmbedder([one, two], [0.25, 0.75])


def test_scores_are_the_fused_scores_of_the_parts(hybrid):
    vectors = hybrid.encode(TEXTS)
    assert vectors.shape == (5, 48) and hybrid.encode("a cat").shape == (48,)
    parts = [each.encode(TEXTS) for each in hybrid.members]
    scores = [
        each.similarity(part[:2], part).numpy()
        for each, part in zip(hybrid.members, parts, strict=True)
    ]
    expected = min_max_fusion(scores, [0.25, 0.75])
    assert_allclose(hybrid.similarity(vectors[:2], vectors).numpy(), expected, atol=1e-6)


@pytest.mark.equality
def test_saved_and_loaded_it_is_the_same(hybrid, tmp_path):
    hybrid.save_pretrained(tmp_path / "both")
    again = HybridEmbedder.from_pretrained(tmp_path / "both")
    assert again.weights == (0.25, 0.75)
    assert again.fingerprint() == hybrid.fingerprint()
    assert_array_equal(again.encode(TEXTS), hybrid.encode(TEXTS))
    (tmp_path / "both" / "hybrid.json").write_text("{}")
    with pytest.raises(ModelError, match=r"hybrid\.json: cannot be read"):
        HybridEmbedder.from_pretrained(tmp_path / "both")


def test_a_pair_alone_has_no_score(hybrid):
    vectors = hybrid.encode(TEXTS)
    with pytest.raises(InputError, match="no score of its own"):
        hybrid.similarity_pairwise(vectors, vectors)
    with pytest.raises(InputError, match="47 dimensions, expected 48"):
        hybrid.similarity(vectors[:, 1:], vectors)


def test_what_does_not_fit_is_refused(hybrid):
    with pytest.raises(InputError, match="1 members"):
        HybridEmbedder(hybrid.members[:1])
    with pytest.raises(InputError, match="3 weights"):
        HybridEmbedder(hybrid.members, [1, 2, 3])


def test_retrieval_is_measured_on_the_fused_ranking(hybrid, tmp_path):
    rows = [{"_id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "the dog sat"}')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("q\t1\t1\n")
    assert evaluate(hybrid, tmp_path).main_score == 1


def test_a_recipe_names_its_partners(tmp_path, tiny_bert, capsys):
    text = f"""
[system]
name = "Test"
paper = "arXiv:1"
tasks = ["retrieval"]
[embedder]
backbone = "{tiny_bert}"
pooling = "first"
[hybrid]
members = ["{tmp_path}/other.toml"]
weights = [0.5, 0.5]
"""
    (tmp_path / "both.toml").write_text(text)
    head = text.split("[hybrid]")[0]
    (tmp_path / "other.toml").write_text(head.replace("first", "mean"))
    built = load_recipe(tmp_path / "both.toml").build()
    assert built.members[0].pooling == ("first",) and built.members[1].pooling == ("mean",)
    (tmp_path / "texts.txt").write_text("a cat\n")
    texts = str(tmp_path / "texts.txt")
    assert main(["embed", "--model", str(tmp_path / "both.toml"), texts]) == 2
    assert "fuses the rankings of 2 embedders" in capsys.readouterr().err
    (tmp_path / "both.toml").write_text(text.replace("[0.5, 0.5]", "[0.5]"))
    with pytest.raises(SettingsError, match="1 weights for 2 embedders"):
        load_recipe(tmp_path / "both.toml")
    (tmp_path / "both.toml").write_text(text.replace("[0.5, 0.5]", '["x", "y"]'))
    with pytest.raises(SettingsError, match="weights"):
        load_recipe(tmp_path / "both.toml")


@pytest.mark.parametrize("weights", [[0.5, float("nan")], [0, 0], [1.0]])
def test_weights_that_rank_nothing_are_refused(weights, minilm):
    with pytest.raises(InputError, match="weights"):
        HybridEmbedder([minilm, minilm], np.array(weights))


def test_a_hybrid_recipe_with_itself_as_a_member_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[system]\nname = "Mine"\npaper = ""\ntasks = []\n'
        '[embedder]\nbackbone = "polyvec/nano-lm"\n'
        f'[hybrid]\nmembers = ["{path}"]\nweights = [0.5, 0.5]\n'
    )
    with pytest.raises(SettingsError, match="is a hybrid itself"):
        load_recipe(path).build("nano")
