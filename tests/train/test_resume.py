"""A killed run that is resumed ends with the weights of one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import checkpoint

RECIPE = """
[system]
name = "mine"
paper = "-"
tasks = ["similarity"]

[embedder]
backbone = "{backbone}"
attention = "bidirectional"
pooling = "mean"

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
"""


@pytest.mark.medium
@pytest.mark.equality
def test_a_run_that_is_killed_anywhere_ends_with_the_same_weights(tmp_path):
    """Before and after a batch, while a checkpoint is written, between two stages, after both."""
    texts = [f"the {i} cats of {chr(97 + i)} sleep on {i * i} mats and purr" for i in range(12)]
    pairs = [{"anchor": each, "positive": each[4:20]} for each in texts]
    for name, rows in (("texts", [{"text": each} for each in texts]), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = tmp_path / "mine.toml"
    places = {name: tmp_path / f"{name}.jsonl" for name in ("texts", "pairs")}
    recipe.write_text(RECIPE.format(backbone=checkpoint("meta-llama/"), **places))
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
    assert not list((tmp_path / "killed").rglob("*.partial"))
