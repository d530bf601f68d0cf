"""What a model is called in a report."""

import json

import pytest

from polyvec.embed.formats.titles import model_title


@pytest.mark.parametrize(
    ("place", "title"),
    [
        ("runs/ours/model", "ours"),
        ("runs/ours", "ours"),
        ("ours/hf/model", "ours"),
        ("ours/checkpoint-200", "ours/checkpoint-200"),
        ("models--org--name/snapshots/abc", "name"),
    ],
)
def test_a_folder_is_called_by_the_name_that_says_something(tmp_path, place, title):
    (tmp_path / place).mkdir(parents=True)
    assert model_title(str(tmp_path / place)) == title


def test_a_trained_folder_is_called_by_its_recipe_and_a_card_before_the_folder(tmp_path):
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    card = "---\ntags: [a]\nmodel-index:\n- name: Our Model\n  results: []\n---\n"
    (folder / "README.md").write_text(card)
    assert model_title(str(folder)) == "Our Model"
    (folder / "README.md").write_text(card.replace("Our", "SentenceTransformer based on"))
    assert model_title(str(folder)) == "run"
    (tmp_path / "run" / "recipe.json").write_text("[]")  # of another program
    assert model_title(str(folder)) == "run"
    run = {"scale": "nano", "recipe": {"system": {"name": "SGPT"}}}
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(run))
    assert model_title(str(folder)) == "SGPT, nano"


def test_names_and_recipes_stay():
    assert model_title("org/no-such-folder") == "org/no-such-folder"
    assert model_title("smol", "nano") == "smol, nano"
    assert model_title("mine/geia.toml", "small") == "geia, small"
