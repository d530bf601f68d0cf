"""Stages that change weights without training: fewer layers, and means of weights."""

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

from polyvec import Embedder
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.layer_probe import probe_layers
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import DataError, ModelError, SettingsError
from polyvec.train.adapters import prepare
from polyvec.train.language_head import attach_head
from polyvec.train.tasks import TASKS
from polyvec.train.tasks.edits import Merge, Prune, slerp

TEXTS = ["the cat sat", "a dog looks on the very long mat", "text of two"]
WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "while", "nobody", "looks"]
ROWS = [
    TrainingRow(f"{one} {two}", (f"{two} {one}",), (f"{two} mat",))
    for one in WORDS[:4]
    for two in WORDS[4:10]
]


@pytest.fixture(autouse=True)
def the_same_draws() -> None:
    """Some random adapters make a vector that rounding of 1e-7 changes by 1e-4."""
    torch.manual_seed(4)


def embedder(**more) -> Embedder:
    return compose(EmbedderSettings(str(checkpoint("meta-llama/")), **more))


def shaken(seed: int) -> Embedder:
    model = embedder()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.1 * torch.randn(each.shape, generator=generator))
    return model


@pytest.mark.parametrize("attention", ["native", "bidirectional", "last-1"])
def test_a_pruned_embedder_is_one_composed_with_fewer_layers(tmp_path, attention):
    pruned = Prune(embedder(attention=attention), num_layers=3).apply(())
    wanted = embedder(attention=attention, num_layers=3)
    assert pruned.backbone.num_layers == 3
    np.testing.assert_array_equal(pruned.encode(TEXTS), wanted.encode(TEXTS))
    assert str(pruned.backbone.verdict) == str(wanted.backbone.verdict)
    pruned.save_pretrained(tmp_path)
    again = Embedder.from_pretrained(tmp_path)
    np.testing.assert_allclose(again.encode(TEXTS), wanted.encode(TEXTS), atol=1e-6)


def test_the_probe_chooses_the_depth():
    model = embedder()
    found = probe_layers(
        model,
        [row.query for row in ROWS[:16]],
        [row.positives[0] for row in ROWS[:16]],
        [row.negatives[0] for row in ROWS[:16]],
        batch_size=8,
    )
    for choose in ("small", "large"):
        stage = Prune(embedder(), choose=choose, batch_size=8, batches=2)
        assert stage.apply(ROWS).backbone.num_layers == getattr(found, choose)
        assert stage.probe == found


def test_an_adapter_is_merged_before_and_the_next_begins_on_fewer_layers(tmp_path):
    model = embedder()
    prepare(model, {"kind": "lora", "rank": 4})
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(0.1)
    pruned = Prune(model, num_layers=2).apply(())
    wanted = pruned.encode(TEXTS)
    table = {"kind": "lora", "rank": 4}
    assert len(prepare(pruned, None, before=table).names) == 2 * 7 * 2
    pruned.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    for cls in (Embedder.from_pretrained, SentenceTransformer):
        np.testing.assert_allclose(cls(str(tmp_path)).encode(TEXTS), wanted, atol=1e-5)


@pytest.mark.parametrize("head", [False, True])
def test_an_adapter_of_an_embedder_composed_with_fewer_layers_has_its_base_beside_it(
    tmp_path, head
):
    model = embedder(num_layers=2)
    if head:
        attach_head(model)
    prepare(model, {"kind": "lora", "rank": 4})
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(0.1)
    wanted = model.eval().encode(TEXTS)
    model.save_pretrained(tmp_path)
    for cls in (Embedder.from_pretrained, SentenceTransformer):
        np.testing.assert_allclose(cls(str(tmp_path)).encode(TEXTS), wanted, atol=1e-5)


def test_a_merged_embedder_has_the_mean_of_weights(tmp_path):
    one, other = shaken(1), shaken(2)
    other.save_pretrained(tmp_path / "other")
    before = {key: value.clone() for key, value in one.state_dict().items()}
    merged = Merge(one, [str(tmp_path / "other")], weights=[3, 1]).apply(())
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[key] + 0.25 * other.state_dict()[key])
    merged.save_pretrained(tmp_path / "saved")
    again = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(again.encode(TEXTS), merged.encode(TEXTS), atol=1e-6)


def test_an_earlier_stage_is_merged_by_its_name(tmp_path):
    """What a stage did not train is as it is."""
    one, other = shaken(1), shaken(2)
    name = "backbone.model.norm.weight"
    final = tmp_path / "stages" / "1-scl" / "final"
    final.mkdir(parents=True)
    save_file({f"embedder.{name}": other.state_dict()[name]}, final / "model.safetensors")
    before = {key: value.clone() for key, value in one.state_dict().items()}
    facts = {"embedder": one, "output": tmp_path}
    merged = TASKS.build("merge", {"others": ["scl"]}, facts, where="[[stage]]").apply(())
    for key, value in merged.state_dict().items():
        mean = (before[key] + other.state_dict()[key]) / 2
        torch.testing.assert_close(value, mean if key == name else before[key])


def test_slerp_by_hand():
    one, other = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(
        slerp([one, other], [1, 1]), torch.tensor([2.0, 2.0]).double() / 2**0.5
    )
    torch.testing.assert_close(slerp([one, other], [1, 0]), one.double())
    torch.testing.assert_close(slerp([one, 3 * one], [1, 1]), torch.tensor([4.0, 0.0]).double())


def test_what_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(SettingsError, match="set num_layers, or choose"):
        Prune(embedder())
    with pytest.raises(SettingsError, match="num_layers 9 is not between 1 and 6"):
        Prune(embedder(), num_layers=9)
    with pytest.raises(DataError, match="24 rows with a positive, a batch has 64"):
        Prune(embedder(), choose="small").apply(ROWS)
    with pytest.raises(SettingsError, match="'nowhere' is no folder and no earlier stage"):
        Merge(embedder(), ["nowhere"]).apply(())
    with pytest.raises(SettingsError, match="3 weights for the embedder and 1 others"):
        Merge(embedder(), ["a"], weights=[1, 2, 3])
    with pytest.raises(SettingsError, match="slerp is between two, not 3"):
        Merge(embedder(), ["a", "b"], method="slerp")
    embedder(num_layers=2).save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match=r"has no weight backbone\.model\.layers\.2"):
        Merge(embedder(), [str(tmp_path / "small")]).apply(())
    with pytest.raises(ModelError, match=r"weight backbone\.model\.layers\.2.* here none"):
        embedder().save_pretrained(tmp_path / "whole")
        Merge(embedder(num_layers=2), [str(tmp_path / "whole")]).apply(())
