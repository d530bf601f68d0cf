"""Nested dimensions and layers: sentence-transformers', and what changes nothing."""

import pytest
import torch
from given_vectors import GivenVectors, agree, batch_of, columns
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.sentence_transformer.losses.adaptive_layer import AdaptiveLayerLoss
from torch import nn

from polyvec.errors import DataError, SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.info_nce import info_nce
from polyvec.train.losses.terms import Objective


def nested(losses=({"kind": "info_nce"},), size=6, **settings):
    """A function of a batch: the sum of the terms."""
    objective = Objective.of(list(losses), settings, {"vector_size": size})
    return lambda batch: sum(objective(batch).values())


def inner(name, model):
    """sentence-transformers' loss, and its gold scores."""
    gold = torch.linspace(0, 1, 6, dtype=torch.float64)
    if name == "cosent":
        return st.CoSENTLoss(model), gold
    if name == "triplet":
        return st.TripletLoss(model), None
    return st.MultipleNegativesRankingLoss(model), None


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 0.25]])
@pytest.mark.parametrize("name", ["info_nce", "cosent", "triplet"])
def test_matryoshka(name, weights):
    model = GivenVectors()
    loss, gold = inner(name, model)
    theirs = st.MatryoshkaLoss(model, loss, [6, 4, 2], matryoshka_weights=weights)
    settings = {"margin": 5.0} if name == "triplet" else {}
    ours = nested([{"kind": name, **settings}], dimensions=[6, 4, 2], weights=weights or [])
    more = {} if gold is None else {"score_B": gold}
    counts = (6, 6, 6) if name == "triplet" else (6, 6)
    agree(theirs, lambda v: ours(batch_of(v, **more)), columns(*counts), gold)


def test_the_whole_size_alone_changes_nothing_of_a_loss_by_cosine():
    batch = batch_of(columns(4, 4))
    torch.testing.assert_close(nested(dimensions=[6])(batch), info_nce(batch))


def test_truncated_vectors_have_length_1_unless_told_otherwise():
    query, document = columns(3, 3)
    batch = Compared.pairs(query, document)
    dot = [{"kind": "info_nce", "similarity": "dot", "temperature": 1.0}]
    cut = Compared.pairs(query[:, :4], document[:, :4])
    settings = {"similarity": "dot", "temperature": 1.0}
    plain = nested(dot, dimensions=[4], normalize=False, size=0)(batch)
    torch.testing.assert_close(plain, info_nce(cut, **settings))
    found = nested(dot, dimensions=[4], size=0)(batch)
    torch.testing.assert_close(found, info_nce(cut, temperature=1.0))


def test_some_dimensions_a_step_are_drawn_by_the_step():
    vectors = columns(4, 4)
    loss = nested(dimensions=[2, 4, 6], dimensions_per_step=1)
    each = {float(info_nce(batch_of([v[:, :d] for v in vectors]))) for d in (2, 4, 6)}
    found = [float(loss(batch_of(vectors, step=step))) for step in range(30)]
    assert {round(value, 9) for value in found} == {round(value, 9) for value in each}
    assert found == [float(loss(batch_of(vectors, step=step))) for step in range(30)]
    with pytest.raises(DataError, match="the number of the step"):
        loss(batch_of(vectors))


class Layered(nn.Module):
    """A sentence-transformers model of given layers: the first module chooses one."""

    def __init__(self):
        super().__init__()
        self.first = Layers()

    device = torch.device("cpu")

    def __getitem__(self, place):
        return self.first

    def forward(self, features):
        # The real ones fill the dict that they are given, too.
        features.update(self.first.forward(features))
        features["sentence_embedding"] = features["token_embeddings"]
        return features

    def get_embedding_dimension(self):
        return None


class Layers(nn.Module):
    class auto_model:
        class config:
            output_hidden_states = False

    def forward(self, features):
        layers = list(features["vectors"].unbind(dim=1))
        return {**features, "all_layer_embeddings": layers, "token_embeddings": layers[-1]}


def layered(monkeypatch, loss_of, **settings):
    """Their adaptive-layer loss of a model of given layers."""
    module = "sentence_transformers.sentence_transformer.losses.adaptive_layer"
    monkeypatch.setattr(f"{module}.Transformer", Layers)
    monkeypatch.setattr(f"{module}.BaseModel", Layered)
    model = Layered()
    return AdaptiveLayerLoss(model, loss_of(model), n_layers_per_step=0, **settings)


def by_layers(vectors):
    """A batch of [texts, layers, E] columns."""
    whole = batch_of([each[:, -1] for each in vectors])
    earlier = {"layer_query_BLE": vectors[0][:, :-1]}
    earlier["layer_document_NLE"] = torch.cat(vectors[1:])[:, :-1]
    return Compared.pairs(whole.query_BE, whole.document_NE, **earlier)


@pytest.mark.parametrize("weighting", ["uniform", "log", "linear"])
@pytest.mark.parametrize("dimensions", [(), (6, 3)])
def test_layers_and_dimensions(monkeypatch, weighting, dimensions):
    """Matryoshka2dLoss is their AdaptiveLayerLoss over their MatryoshkaLoss."""

    def loss_of(model):
        ranking = st.MultipleNegativesRankingLoss(model)
        return st.MatryoshkaLoss(model, ranking, dimensions) if dimensions else ranking

    weights = {"last_layer_weight": 0.8, "prior_layers_weight": 0.6, "kl_temperature": 0.5}
    theirs = layered(monkeypatch, loss_of, kl_div_weight=0.7, layer_weighting=weighting, **weights)
    ours = nested(
        dimensions=list(dimensions),
        layers=True,
        layers_per_step=0,
        layer_weighting=weighting,
        kl_weight=0.7,
        **weights,
    )
    vectors = [each.unflatten(0, (4, 3)) for each in columns(12, 12)]
    agree(theirs, lambda v: ours(by_layers(v)), vectors)


def test_the_last_layer_is_a_fixed_teacher():
    vectors = [each.unflatten(0, (4, 3)) for each in columns(12, 12)]
    for each in vectors:
        each.requires_grad_()
    loss = nested(layers=True, layers_per_step=0, last_layer_weight=0.0, prior_layers_weight=0.0)
    loss(by_layers(vectors)).backward()
    assert vectors[0].grad[:, :-1].abs().max() > 1e-4
    assert vectors[0].grad[:, -1].abs().max() == 0


def test_layers_are_needed():
    with pytest.raises(DataError, match="'matryoshka' needs vectors of earlier layers"):
        nested(layers=True, layers_per_step=0)(batch_of(columns(2, 2)))


def test_heads_and_regularisers_see_whole_vectors():
    """A head of six dimensions; nested = true would truncate its input."""
    batch = batch_of(columns(3, 3), label_B=torch.tensor([0, 1, 1]))
    head = {"kind": "softmax_nli", "num_labels": 2}
    loss = nested([{"kind": "info_nce"}, head, {"kind": "flops"}], dimensions=[6, 3])
    assert loss(batch).isfinite()
    torch.testing.assert_close(
        nested([{"kind": "info_nce", "nested": False}], dimensions=[6, 3])(batch), info_nce(batch)
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dimensions": [2, 12]}, "not all between 1 and 6"),
        ({"dimensions": [0, 6]}, "not all between 1 and 6"),
        ({"dimensions": [3, 6], "weights": [1.0]}, "1 weights for 2 dimensions"),
        ({"dimension": [3]}, "Did you mean 'dimensions'"),
        ({"weights": [1.0]}, "neither dimensions nor layers"),
    ],
)
def test_wrong_settings(settings, says):
    with pytest.raises(SettingsError, match=says):
        nested(**settings)


def test_a_warning_if_whole_vectors_are_not_trained():
    with pytest.warns(UserWarning, match="whole vectors are not trained"):
        nested(dimensions=[2, 3])
