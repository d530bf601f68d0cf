"""`polyvec recipes check` of a recipe with an inverter."""

import pytest

from polyvec.cli import main
from polyvec.invert.checking import invariants
from polyvec.invert.sections import INVERTER
from polyvec.recipe import all_recipes

RECIPE = """
[system]
name = "Tiny"
paper = "none"
tasks = ["inversion"]
[victim]
backbone = "{victim}"
[inverter]
model = "polyvec/nano-lm"
num_tokens = 2
max_tokens = 6
beams = 1
[[stage]]
kind = "invert"
data = [{{ path = "{texts}" }}]
batch_size = 8
max_steps = 2
[expect.nano]
"toy val {measure}" = {{ at_least = {at_least}, measured = 0.5 }}
"""


@pytest.fixture
def check(tmp_path, tiny_bert, capsys):
    """The exit code and what is printed, of a recipe with this figure."""
    (tmp_path / "toy").mkdir()
    rows = [f'{{"text": "the {word} house"}}\n' for word in ("red", "blue", "old", "new")]
    for name in ("train", "val"):
        (tmp_path / "toy" / f"{name}.jsonl").write_text("".join(rows))

    def run(measure, at_least):
        path = tmp_path / "tiny.toml"
        texts = tmp_path / "toy" / "train.jsonl"
        path.write_text(
            RECIPE.format(victim=tiny_bert, texts=texts, measure=measure, at_least=at_least)
        )
        return main(["recipes", "check", str(path), "--data", str(tmp_path)]), capsys.readouterr()

    return run


@pytest.mark.medium
def test_a_figure_that_is_missed_fails_and_the_invariants_are_shown(check):
    code, shown = check("token_f1", 1.1)
    assert code == 2
    for line in ("ok   order", "ok   saved and loaded", "ok   vectors of another size"):
        assert line in shown.out
    assert "FAIL toy val token_f1: 0." in shown.out
    assert "ok   toy val token_f1" in check("token_f1", 0.0)[1].out


def test_figures_of_other_measures_or_missing_texts_are_refused_before_training(check, tmp_path):
    code, shown = check("token_f", 0.0)
    assert code == 2 and "'token_f' is not measured. Did you mean 'token_f1'" in shown.err
    (tmp_path / "toy" / "val.jsonl").unlink()
    code, shown = check("token_f1", 0.0)
    assert code == 2 and "val.jsonl is not there; pass its folder with --data" in shown.err


def recipes():
    for recipe in all_recipes():
        if "inverter" in recipe.present:
            quick = recipe.path.stem in ("geia", "m-vec2text")
            yield pytest.param(recipe, id=recipe.key, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.medium
@pytest.mark.parametrize("recipe", list(recipes()))
def test_every_recipe_keeps_the_invariants_of_an_inverter(recipe, minilm_folder):
    lines = list(invariants(recipe.build("nano")))
    assert all(line.ok for line in lines), [line for line in lines if not line.ok]
    assert len(lines) == (4 if recipe.at(INVERTER, "nano").corrector else 3)
