"""PEFT adapters of the door beside sentence-transformers' own methods."""

import numpy as np
import pytest
import sentence_transformers
import torch
from peft import LoraConfig, TaskType

from polyvec.errors import ModelError
from polyvec.sentence_transformers import SentenceTransformer

TEXTS = ["a cat", "the longer text of three about rivers in spring", "rain"]


def lora(rank: int) -> LoraConfig:
    return LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=rank,
        target_modules=["query", "value"],
        init_lora_weights=False,
    )


def same(found, wanted):
    np.testing.assert_allclose(found.encode(TEXTS), wanted.encode(TEXTS), atol=2e-6)


@pytest.fixture
def both(tiny_bert):
    """Ours and theirs with two equal adapters; the second, "other", is active."""
    made = []
    for kind in (SentenceTransformer, sentence_transformers.SentenceTransformer):
        torch.manual_seed(7)
        model = kind(str(tiny_bert), device="cpu")
        model.add_adapter(lora(2))
        model.add_adapter(lora(4), "other")
        made.append(model)
    return made


def test_each_method_changes_the_vectors_as_theirs_does(both, tiny_bert):
    ours, theirs = both
    plain = sentence_transformers.SentenceTransformer(str(tiny_bert), device="cpu")
    assert ours.active_adapters() == theirs.active_adapters() == ["other"]
    same(ours, theirs)
    for model in both:
        model.set_adapter("default")
    assert ours.active_adapters() == theirs.active_adapters() == ["default"]
    same(ours, theirs)
    assert np.abs(ours.encode(TEXTS) - plain.encode(TEXTS)).max() > 0.01
    for model in both:
        model.disable_adapters()
    same(ours, plain)
    for model in both:
        model.enable_adapters()
    same(ours, theirs)
    for model in both:
        model.delete_adapter("other")
    with pytest.raises(ValueError, match="other"):
        ours.set_adapter("other")


def test_the_state_of_an_adapter_is_theirs_and_loads(both, tiny_bert, tmp_path):
    ours, theirs = both
    for name in (None, "default", "other"):
        found, wanted = ours.get_adapter_state_dict(name), theirs.get_adapter_state_dict(name)
        assert found.keys() == wanted.keys() and found
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    theirs.transformers_model.save_pretrained(tmp_path / "saved")
    again = [
        kind(str(tiny_bert), device="cpu")
        for kind in (SentenceTransformer, sentence_transformers.SentenceTransformer)
    ]
    for model in again:
        model.load_adapter(str(tmp_path / "saved"))
    same(again[0], again[1])


def test_only_the_adapter_is_trained(both):
    ours, _ = both
    names = [
        [name.split("encoder.")[-1] for name, x in model.named_parameters() if x.requires_grad]
        for model in both
    ]
    assert names[0] == names[1] and all("lora" in name for name in names[0])
    features = ours.preprocess(TEXTS)
    ours.train()
    ours(features)["sentence_embedding"].sum().backward()
    grown = [name for name, each in ours.named_parameters() if each.grad is not None]
    assert grown and all("lora" in name for name in grown)


def test_a_model_with_an_adapter_is_saved_and_loaded(both, tmp_path):
    ours, _ = both
    with pytest.raises(ModelError, match="one active adapter can be saved"):
        ours.save_pretrained(tmp_path / "model")
    ours.delete_adapter("default")
    ours.save_pretrained(tmp_path / "model")
    np.testing.assert_allclose(
        SentenceTransformer(tmp_path / "model").encode(TEXTS), ours.encode(TEXTS), atol=2e-6
    )
