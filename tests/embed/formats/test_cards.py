"""The card of a model survives saving: licence and languages always, its text while it is true."""

import copy

import pytest
import torch
import yaml
from folders import bert, modules
from late_folders import pylate

from polyvec import Embedder, MultiVectorEmbedder
from polyvec.embed.projection.dense import Dense

CARD = """---
language:
- de
- en
license: cc-by-nc-4.0
base_model: microsoft/MiniLM
tags:
- my-tag
model-index:
- name: mine
  results: [{value: 69.94}]
---
# My model

Trained on my letters. It scores 69.94.

---

A rule stays a rule.
"""


@pytest.fixture
def folder(tmp_path):
    bert(tmp_path / "model")
    modules(tmp_path / "model", "mean")
    (tmp_path / "model" / "README.md").write_text(CARD)
    return tmp_path / "model"


def card(folder):
    """Metadata, as the hub reads them, and text."""
    _, head, text = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_card_is_kept(folder, tmp_path):
    model = Embedder.from_pretrained(folder)
    model.encode("a cat")
    for place in (tmp_path / "saved", folder, folder):
        model.save_pretrained(place)
        head, text = card(place)
        assert (head["license"], head["language"]) == ("cc-by-nc-4.0", ["de", "en"])
        assert head["base_model"] == "microsoft/MiniLM" and head["tags"] == ["my-tag"]
        assert head["model-index"][0]["name"] == "mine"
        assert head["library_name"] == "sentence-transformers"
        assert text.startswith("\n# My model\n\nTrained on my letters.") and "a rule" in text
        assert text.count("saved with polyvec") == 1 and "| pooling |" in text
        model = Embedder.from_pretrained(place)


def test_of_changed_weights_the_licence_is_kept_and_no_claim(folder, tmp_path):
    model = Embedder.from_pretrained(folder)
    loss = torch.stack([each.square().sum() for each in model.parameters()]).sum()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    model.save_pretrained(tmp_path / "saved")
    head, text = card(tmp_path / "saved")
    assert (head["license"], head["language"]) == ("cc-by-nc-4.0", ["de", "en"])
    assert "model-index" not in head and "69.94" not in text
    assert text.count("saved with polyvec") == 1


def test_of_another_model_on_the_same_weights_too(folder, tmp_path):
    plain = Embedder.from_pretrained(folder)
    made = Embedder.from_parts(plain.backbone, plain.text_tokenizer, projections=[Dense(32, 8)])
    made.save_pretrained(tmp_path / "saved")
    head, text = card(tmp_path / "saved")
    assert head["license"] == "cc-by-nc-4.0" and "69.94" not in text


def test_half_precision_and_a_copy_are_still_what_the_card_says(folder, tmp_path):
    model = copy.deepcopy(Embedder.from_pretrained(folder)).to("cpu", torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    head, _ = card(tmp_path / "saved")
    assert head["license"] == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ("just text", "just text"),
        ("", ""),
        ("---\nlicense: mit\n", "license: mit"),  # metadata without an end are text
        ("---\n---\nafter", "after"),
        ("\ufeff---\r\nlicense: mit\r\n---\r\nafter", "after"),
        ("---\n- a list\n---\nafter", "after"),
    ],
)
def test_odd_cards(folder, tmp_path, before, kept):
    (folder / "README.md").write_bytes(before.encode())
    Embedder.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "README.md").read_text("utf-8")
    assert kept in text and text.count("saved with polyvec") == 1


def test_a_folder_without_a_card_gets_one(folder, tmp_path):
    (folder / "README.md").unlink()
    Embedder.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    head, text = card(tmp_path / "saved")
    assert "polyvec" in head["tags"] and "license" not in head
    assert "saved with polyvec" in text


def test_late_interaction_too(tmp_path):
    pylate(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text(CARD)
    MultiVectorEmbedder.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "saved")
    head, text = card(tmp_path / "saved")
    assert head["license"] == "cc-by-nc-4.0" and "# My model" in text


def test_what_is_written_into_the_folder_between_load_and_save_is_kept(folder):
    model = Embedder.from_pretrained(folder)
    (folder / "README.md").write_text(CARD.replace("cc-by-nc-4.0", "mit") + "Edited.\n")
    model.save_pretrained(folder)
    head, text = card(folder)
    assert head["license"] == "mit" and "Edited." in text


@pytest.mark.parametrize("kind", [Embedder, MultiVectorEmbedder])
def test_and_between_two_saves(kind, folder, tmp_path):
    if kind is MultiVectorEmbedder:
        pylate(folder := tmp_path / "late")
    model = kind.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "README.md").write_text("---\nlicense: mit\nlanguage: fr\n---\nMine.\n")
    model.save_pretrained(tmp_path / "saved")
    head, text = card(tmp_path / "saved")
    assert (head["license"], head["language"]) == ("mit", "fr") and "Mine." in text
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "saved")
    head, text = card(tmp_path / "saved")
    assert head["license"] == "mit" and "Mine." not in text


def test_the_licence_of_a_model_that_is_replaced_is_not_this_models(folder, tmp_path):
    model = Embedder.from_pretrained(folder)
    bert(tmp_path / "other")
    modules(tmp_path / "other", "mean")
    (tmp_path / "other" / "README.md").write_text("---\nlicense: mit\n---\n")
    model.save_pretrained(tmp_path / "other")
    assert card(tmp_path / "other")[0]["license"] == "cc-by-nc-4.0"
