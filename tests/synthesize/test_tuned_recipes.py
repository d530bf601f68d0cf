"""Recipes of Table 3 with parts of their own: from texts to a trained embedder at scale nano."""

import json

import pytest

from polyvec.cli import main
from polyvec.embed.embedder import Embedder

SENTENCES = [
    "A man is playing a large flute in the park.",
    "Three women walk along the river with a dog.",
    "The old library opens every day except on Sunday.",
    "Children throw stones into the cold water.",
    "The train to the north leaves at seven in the morning.",
    "Bees visit the white flowers behind the house.",
]


def trained(key, tmp_path, capsys, *overrides):
    """Rows of `polyvec synthesize`, on which `polyvec train` then takes a step."""
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    call = [key, "--scale", "nano", "--texts", "texts.txt", "-o", "synthesized"]
    assert main(["synthesize", *call, *overrides]) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "synthesized/train.jsonl").open()]
    train = ["train", key, "--scale", "nano", "-o", "run", "stage.0.max_steps=1"]
    assert main([*train, f"stage.0.batch_size={len(rows)}"]) == 0, capsys.readouterr().err
    assert (tmp_path / "run/model/modules.json").is_file()
    return rows


@pytest.mark.medium
def test_adaptcl(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = trained("adaptcl", tmp_path, capsys, "step.1.ppo.steps=1", "step.5.ppo.steps=1")
    assert {row["query"] for row in rows} <= set(SENTENCES)
    assert all(row["pos"][0] != row["query"] and len(row["neg"]) == 1 for row in rows)
    models = tmp_path / "synthesized/models"
    assert {each.name for each in models.iterdir()} == {"generator-1", "encoder-1", "generator-2"}


@pytest.mark.medium
def test_sptar(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gold = [{"query": f"what about {t.split()[1]}?", "pos": [t]} for t in SENTENCES]
    (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, gold)))
    # What nano-lm writes shares no word with the texts, so BM25 would keep nothing.
    changed = ('step.1.data={ path = "gold.jsonl" }', 'step.5.by="embedder"')
    rows = trained("sptar", tmp_path, capsys, *changed)
    assert {row["pos"][0] for row in rows} <= set(SENTENCES)
    assert (tmp_path / "synthesized/models/soft-prompt/soft_prompt.safetensors").is_file()


@pytest.mark.medium
def test_i3(tmp_path, monkeypatch, capsys):
    """Two phases, and an introspector of one layer in the model that is left."""
    monkeypatch.chdir(tmp_path)
    rows = trained("i3", tmp_path, capsys, "step.0.limit=4")
    assert all(row["prompt"] and row["neg"] for row in rows)
    model = Embedder.from_pretrained(tmp_path / "run/model")
    assert model.pooling_module.num_layers == 1
    assert model.pooling_module.project.weight.abs().max() > 0
