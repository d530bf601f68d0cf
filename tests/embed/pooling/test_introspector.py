"""The introspector of I3: what an instruction changes, and what stays as it was."""

import numpy as np
import pytest
import torch

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.embedder import Embedder
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import ModelError, SettingsError
from polyvec.train.tasks.edits import PruneIntrospector

TEMPLATE = {
    "name": "i3",
    "query": ["{text}", "{text} {!instruction}"],
    "document": "{text}",
    "pool_prompt": True,
    "strip": True,
    "defaults": {"instruction": ""},
}
TEXTS = ["Where does the Danube end?", "What do bees do?"]


def embedder(**more):
    return compose(
        EmbedderSettings(
            "polyvec/nano-lm",
            pooling="introspector",
            pooling_settings={"num_layers": 3, "num_heads": 4},
            template=TEMPLATE,
            **more,
        )
    )


def taught(model):
    """As if it were trained: its last matrix is no longer zero."""
    torch.manual_seed(0)
    torch.nn.init.normal_(model.pooling_module.project.weight, std=0.5)
    return model


def directions(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def asked(model, instruction):
    return directions(model.encode_query(TEXTS, prompt=instruction))


@pytest.fixture(scope="module")
def plain():
    """The frozen model's own vectors."""
    settings = EmbedderSettings("polyvec/nano-lm", pooling="mean", template="raw")
    return directions(compose(settings).encode(TEXTS))


def test_untrained_it_changes_no_direction(plain):
    model = embedder()
    assert np.allclose(asked(model, "Find a news article."), plain, atol=1e-5)
    assert np.allclose(directions(model.encode_document(TEXTS)), plain, atol=1e-5)


def test_an_instruction_changes_queries_alone(plain):
    model = taught(embedder())
    news, claims = asked(model, "Find a news article."), asked(model, "Find a claim.")
    assert np.abs(news - plain).max() > 0.05 and np.abs(news - claims).max() > 1e-3
    assert np.allclose(directions(model.encode_document(TEXTS)), plain, atol=1e-5)
    assert np.allclose(directions(model.encode_query(TEXTS)), plain, atol=1e-5)


def test_it_is_saved_with_the_model(tmp_path):
    model = taught(embedder())
    wanted = model.encode_query(TEXTS, prompt="Find a claim.")
    model.save_pretrained(tmp_path / "saved")
    again = Embedder.from_pretrained(tmp_path / "saved")
    assert np.array_equal(again.encode_query(TEXTS, prompt="Find a claim."), wanted)


def test_pruning_keeps_the_first_blocks():
    model = taught(embedder())
    kept = PruneIntrospector(model, 1).apply([])
    before, after = model.pooling_module.state_dict(), kept.pooling_module.state_dict()
    assert kept.pooling_module.num_layers == 1
    assert all(torch.equal(before[name], each) for name, each in after.items())
    assert not any(name.startswith(("blocks.1", "blocks.2")) for name in after)
    assert torch.equal(kept.backbone.model.norm.weight, model.backbone.model.norm.weight)


def test_mistakes_are_one_line():
    with pytest.raises(SettingsError, match="of 3 layers cannot be pruned to 3; give 1 to 2"):
        PruneIntrospector(embedder(), 3)
    with pytest.raises(ModelError, match="needs \\[embedder\\] pooling = 'introspector', not mean"):
        PruneIntrospector(compose(EmbedderSettings("polyvec/nano-lm", pooling="mean")), 1)
    with pytest.raises(SettingsError, match="reads no data"):
        PruneIntrospector(embedder(), 1).apply([TrainingRow("a", ("b",))])
    with pytest.raises(SettingsError, match="not divisible by 5 heads"):
        compose(
            EmbedderSettings(
                "polyvec/nano-lm", pooling="introspector", pooling_settings={"num_heads": 5}
            )
        )
