"""Recipes at a scale, named once: indexes remember how they were built, errors name what runs."""

import json

import pytest

from polyvec import load_recipe
from polyvec.errors import UnknownModelError

PETS = b"a cat\na dog\na boat\n"
NANO = "--recipe", "prompteol", "--scale", "nano"


@pytest.fixture
def pets(run, tmp_path):
    assert run("index", tmp_path / "pets", *NANO, stdin=PETS).status == 0
    return tmp_path / "pets"


def test_an_index_of_a_recipe_is_searched_without_its_options(run, pets):
    done = run("search", pets, "a dog", "--json")
    assert (done.status, done.err) == (0, "")
    found = [json.loads(line) for line in done.out.splitlines()]
    model = load_recipe("prompteol").build("nano")
    expected = model.similarity(model.encode("a dog"), model.encode(["a cat", "a dog", "a boat"]))
    assert {row["text"]: row["score"] for row in found} == pytest.approx(
        dict(zip(["a cat", "a dog", "a boat"], expected.ravel().tolist(), strict=True)), abs=1e-5
    )
    # Naming the recipe again is not asking for its largest scale.
    assert run("search", pets, "a dog", "--json", "--recipe", "prompteol").out == done.out


def test_another_recipe_is_refused_with_the_options_of_the_index(run, pets, one_line):
    printed = one_line(run("search", pets, "a dog", "--recipe", "echo", "--scale", "nano"))
    assert "built with another model (--recipe prompteol --scale nano) or" in printed


def test_a_recipe_file_and_an_attention_are_remembered(run, tmp_path, monkeypatch):
    recipe = load_recipe("prompteol").path.read_text("utf-8")
    (tmp_path / "mine.toml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    run("index", "pets", "--model", "mine.toml", "--scale", "nano", stdin=PETS)
    monkeypatch.chdir(tmp_path / "pets")
    assert run("search", tmp_path / "pets", "a dog", "-k", 1).status == 0
    attention = "--model", "polyvec/nano-lm", "--attention", "bidirectional"
    run("index", tmp_path / "both", *attention, stdin=PETS)
    assert run("search", tmp_path / "both", "a dog", "-k", 1).status == 0


def test_a_folder_with_the_name_of_a_recipe_is_not_the_recipe(run, tmp_path, monkeypatch):
    (tmp_path / "prompteol").mkdir()
    monkeypatch.chdir(tmp_path)
    run("index", "pets", "--plain", *NANO, stdin=PETS)
    assert json.loads((tmp_path / "pets" / "manifest.json").read_text())["model"] == "prompteol"


def test_a_manifest_without_a_scale_is_searched(run, tmp_path, tiny_bert):
    """As all were before indexes knew of recipes, and those of models are."""
    run("index", tmp_path / "pets", "--plain", "--model", tiny_bert, stdin=PETS)
    manifest = json.loads((tmp_path / "pets" / "manifest.json").read_text())
    assert not {"scale", "attention"} & set(manifest)
    assert run("search", tmp_path / "pets", "a dog").status == 0


def test_the_papers_model_without_a_hub_names_the_smaller_ones(run, one_line, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    printed = one_line(run("embed", "--recipe", "prompteol", stdin=b"a cat\n"))
    assert printed.startswith("polyvec: facebook/opt-2.7b: no such folder")
    assert printed.endswith(
        "; prompteol also runs at smaller scales: --scale small, --scale nano\n"
    )
    with pytest.raises(UnknownModelError) as mine:
        load_recipe("prompteol").build(backbone="nobody/nothing")
    assert "smaller scales" not in str(mine.value)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["recipes", "show", "prompteol", "--scale", "nano"], "polyvec recipes show"),
        (["data", "stats", "x", "--fast"], "polyvec data stats"),
        (["embed", "--colour"], "polyvec embed"),
    ],
)
def test_an_unknown_option_points_to_the_help_that_has_the_known_ones(run, arguments, where):
    done = run(*arguments)
    assert done.status == 2
    assert done.err.startswith(f"{where}: unrecognized arguments: --")
    assert done.err.rstrip().endswith(f"See {where} --help")


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "data").mkdir()
    data = [("a cat", "a kitten", 5), ("a cat", "a boat", 1), ("a dog", "a puppy", 4)]
    lines = [json.dumps({"sentence1": a, "sentence2": b, "score": s}) for a, b, s in data]
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(lines))
    return tmp_path / "data"


def test_evaluate_takes_a_recipes_name_with_a_scale(run, pairs, tmp_path):
    scores = tmp_path / "scores.json"
    done = run("evaluate", "prompteol", pairs, "--scale", "nano", "-o", scores)
    assert done.status == 0
    assert json.loads(scores.read_text())["model"] == "prompteol at scale nano"
    by_file = run("evaluate", load_recipe("prompteol").path, pairs, "--scale", "nano")
    columns = [[row.split("\t")[4] for row in each.out.splitlines()] for each in (done, by_file)]
    assert columns[0] == columns[1]


def test_the_scale_of_a_comparison_is_that_of_its_recipes(run, pairs, tiny_bert, one_line):
    nano = "--tasks", pairs, "--scale", "nano"
    for first in (tiny_bert, "causal-mean"):
        assert run("compare", first, "prompteol", *nano).status == 0
    assert "is not a recipe" in one_line(run("compare", tiny_bert, tiny_bert, *nano))


def test_a_recipes_name_without_a_scale_says_which_there_are(run, pairs, one_line, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    printed = one_line(run("evaluate", "prompteol", pairs))
    assert "there is a recipe of this name: prompteol --scale full, small or nano" in printed
