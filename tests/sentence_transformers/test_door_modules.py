"""Modules added to a model of the door, and the other methods that users find there."""

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling

from polyvec import Embedder
from polyvec.errors import InputError, ModelError
from polyvec.sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder

TEXTS = ["a cat", "the longer text of three about rivers in spring", "rain"]


def dense(out_features: int = 6, in_features: int = 32, **options) -> Dense:
    torch.manual_seed(3)
    return Dense(in_features, out_features, **options)


@pytest.fixture
def both(tiny_bert):
    return [
        kind(str(tiny_bert), device="cpu")
        for kind in (SentenceTransformer, sentence_transformers.SentenceTransformer)
    ]


def same(both):
    ours, theirs = both
    assert len(ours) == len(theirs)
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=2e-6)


def test_steps_are_added_replaced_and_removed_as_theirs(both):
    changes = [
        lambda model: model.add_module("dense", dense(activation_function=torch.nn.Identity())),
        lambda model: model.add_module("dense", dense(8, use_residual=True)),  # replaces it
        lambda model: model.append(LayerNorm(8)),
        lambda model: model.insert(-1, Normalize()),
        lambda model: model.extend([dense(4, 8, bias=False), Normalize()]),
        lambda model: model.pop(-1),
        lambda model: model.__delitem__(2),
        lambda model: model.__setitem__(-1, dense(5, 8)),
        lambda model: model.add_module("5", Normalize()),
        lambda model: model.__setitem__(1, Pooling(32, "cls")),
    ]
    for change in changes:
        for model in both:
            change(model)
        same(both)
    assert both[0].append(Normalize()) is both[0]


def test_a_step_is_found_by_its_name(both):
    for model in both:
        model.add_module("dense", dense(8))
        assert model.dense.linear.out_features == model[-1].linear.out_features == 8
    with pytest.raises(AttributeError, match="no attribute 'dens'"):
        _ = both[0].dens


def test_an_added_layer_is_trained_and_saved(both, tmp_path):
    ours, _ = both
    layer = dense()
    ours.add_module("dense", layer)
    assert any(each is layer.linear.weight for each in ours.parameters())
    ours(ours.preprocess(TEXTS))["sentence_embedding"].sum().backward()
    assert layer.linear.weight.grad.abs().sum() > 0
    wanted = ours.encode(TEXTS)
    ours.save_pretrained(tmp_path)
    for kind in (SentenceTransformer, sentence_transformers.SentenceTransformer):
        np.testing.assert_allclose(
            kind(str(tmp_path), device="cpu").encode(TEXTS), wanted, atol=2e-6
        )


def test_the_components_of_a_pca_as_in_bitext_mining(both):
    components = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 5)))[0].T
    for model in both:
        layer = dense(5, bias=False, activation_function=torch.nn.Identity())
        layer.linear.weight = torch.nn.Parameter(torch.tensor(components.astype(np.float32)))
        model.add_module("dense", layer)
    same(both)


def test_what_is_no_step_is_refused_and_changes_nothing(both):
    ours, theirs = both
    for error, match, change in (
        (InputError, "a Linear cannot be added", lambda: ours.append(torch.nn.Linear(3, 3))),
        (InputError, "a Transformer cannot be added", lambda: ours.append(theirs[0])),
        (ModelError, "takes 9 dimensions, but gets 32", lambda: ours.append(dense(3, 9))),
        (InputError, "reads or writes", lambda: ours.append(dense(module_output_name="scores"))),
        (InputError, "is not one of torch.nn", lambda: ours.append(dense(activation_function=abs))),
        (InputError, "steps begin at 2", lambda: ours.insert(1, Normalize())),
        (InputError, r"model\[0\] cannot be removed", lambda: ours.pop(0)),
        (InputError, r"model\[0\] is the transformer", lambda: ours.__setitem__(0, theirs[0])),
        (InputError, r"model\[1\] is the pooling", lambda: ours.__setitem__(1, Normalize())),
        (IndexError, "no module 7", lambda: ours.pop(7)),
        (IndexError, "no module 'x'", lambda: ours.pop("x")),
        (IndexError, "no module 7", lambda: ours[7]),
    ):
        with pytest.raises(error, match=match):
            change()
        same(both)
    with pytest.warns(UserWarning, match="Dropout is left out"):
        ours.append(Dropout(0.5))
    same(both)


@pytest.mark.parametrize("kind", ["SentenceTransformer", "SparseEncoder", "CrossEncoder"])
def test_every_public_name_is_there(kind):
    """What is in sentence-transformers' class is in ours; torch's own names are not asked for."""
    theirs = getattr(sentence_transformers, kind)
    ours = {
        "SentenceTransformer": SentenceTransformer,
        "SparseEncoder": SparseEncoder,
        "CrossEncoder": CrossEncoder,
    }[kind]
    instance = {"model", "tokenizer"} if kind == "CrossEncoder" else set()  # set by __init__
    names = [name for name in dir(theirs) if not name.startswith("_") and name not in instance]
    assert [name for name in names if not hasattr(ours, name)] == []


def test_older_and_rarer_methods(both, tiny_bert):
    ours, theirs = both
    assert isinstance(SentenceTransformer.load(tiny_bert), Embedder)
    assert ours.has_peft_compatible_model() and ours.supports("text") and not ours.supports("image")
    assert ours.model_card_data_class is theirs.model_card_data_class
    ours.clear_placement_cache()
    for call, match in (
        (lambda: ours.get_sentence_features([1]), "use preprocess"),
        (lambda: SentenceTransformer.merge([ours, ours]), "merges no models"),
        (lambda: ours.old_fit([]), "use fit"),
        (lambda: ours.evaluate(None), "not an evaluator"),
        (lambda: ours.save_to_hub("me/model", organization="you"), "is not the owner"),
    ):
        with pytest.raises(InputError, match=match):
            call()


def test_no_hub_is_one_error(both, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for call in (both[0].push_to_hub, both[0].save_to_hub):
        with pytest.raises(ModelError, match="me/model: could not upload the model"):
            call("me/model")


def test_gradient_checkpointing_changes_no_gradient(both):
    gradients = []
    for enabled in (False, True):
        model = both[0]
        model.zero_grad()
        if enabled:
            model.gradient_checkpointing_enable()
            assert model.transformers_model.is_gradient_checkpointing
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model(model.preprocess(TEXTS))["sentence_embedding"][:, 0].sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat([g.flatten() for g in grads]))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)
