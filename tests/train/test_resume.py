"""A killed run that is resumed ends with the weights of one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import checkpoint
from safetensors.torch import load_file

EMBEDDER = """
[system]
name = "mine"
paper = "-"
tasks = ["similarity"]

[embedder]
backbone = "{backbone}"
attention = "bidirectional"
pooling = "mean"
"""
STAGES = {
    "mntp, scl": """
[[stage]]
kind = "mntp"
batch_size = 4
max_steps = 8
adapter = {{ kind = "lora", rank = 4, dropout = 0.1 }}
data = [{{ path = "{texts}" }}]
trainer = {{ save_steps = 2 }}

[[stage]]
kind = "scl"
batch_size = 4
max_steps = 8
accumulate = 2
gradient_cache = 40
attention_dropout = 0.1
losses = [{{ kind = "info_nce" }}, {{ kind = "momentum_queue", size = 8, momentum = 0.9 }}]
data = [{{ path = "{pairs}" }}]
trainer = {{ save_steps = 3 }}
""",
    "diffcse, dynamic negatives": """
[[stage]]
kind = "diffcse"
batch_size = 4
max_steps = 5
attention_dropout = 0.1
gradient_cache = 30
mask = "of"
weight = 0.5
data = [{{ path = "{texts}" }}]
trainer = {{ save_steps = 2 }}

[[stage]]
kind = "scl"
batch_size = 4
max_steps = 8
attention_dropout = 0.1
dynamic_negatives = {{ num_negatives = 1, every = 2, ratio = 0.5, ceiling = 2.0 }}
data = [{{ path = "{triplets}" }}]
trainer = {{ save_steps = 3 }}
""",
}


@pytest.mark.medium
@pytest.mark.equality
@pytest.mark.parametrize("stages", STAGES)
def test_a_run_that_is_killed_anywhere_ends_with_the_same_weights(stages, tmp_path):
    """Before and after a batch, while a checkpoint is written, between two stages, after both."""
    texts = [f"the {i} cats of {chr(97 + i)} sleep on {i * i} mats and purr" for i in range(12)]
    pairs = [{"anchor": each, "positive": each[4:20]} for each in texts]
    others = [texts[place:] + texts[:place] for place in range(1, 5)]
    triplets = [
        {"query": pair["anchor"], "pos": [pair["positive"]], "neg": negatives}
        for pair, *negatives in zip(pairs, *others, strict=True)
    ]
    data = {"texts": [{"text": each} for each in texts], "pairs": pairs, "triplets": triplets}
    for name, rows in data.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = tmp_path / "mine.toml"
    places = {name: tmp_path / f"{name}.jsonl" for name in data}
    text = EMBEDDER + STAGES[stages]
    recipe.write_text(text.format(backbone=checkpoint("bos:meta-llama/"), **places))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), str(recipe), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for path in sorted((tmp_path / "whole").rglob("*.safetensors")):
        place = path.relative_to(tmp_path / "whole")
        assert (tmp_path / "killed" / place).read_bytes() == path.read_bytes(), place
    if "dynamic" in stages:
        (last,) = (tmp_path / "killed").glob("stages/2-scl/checkpoint-8/model.safetensors")
        used = load_file(last)["heads.dynamic_negatives.place_Rn"]
        assert int(used.min()) > 0, "every row's negative was replaced"
    assert not list((tmp_path / "killed").rglob("*.partial"))
