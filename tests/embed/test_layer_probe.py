"""Vectors of every depth equal those of a model that was cut there."""

import dataclasses

import numpy as np
import pytest
from checkpoints import checkpoint

from polyvec.embed.compose import compose
from polyvec.embed.layer_probe import LayerProbe, depth_vectors, probe_layers
from polyvec.embed.sections import EMBEDDER
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import InputError, ModelError
from polyvec.recipe import load_recipe

TEXTS = ["A cat sits on the mat.", "Vectors of several lengths are here, one longer.", "No."]


@pytest.mark.parametrize("pooling", ["mean", "last", "weighted_mean"])
def test_each_depth_equals_a_model_of_so_many_layers(pooling):
    settings = EmbedderSettings("polyvec/nano-lm", pooling=pooling)
    found = depth_vectors(compose(settings), TEXTS)
    assert found.shape == (3, 6, 192)
    for depth in (1, 4, 6):
        cut = compose(dataclasses.replace(settings, num_layers=depth)).encode(TEXTS)
        np.testing.assert_allclose(found[:, depth - 1], cut, atol=1e-5)


def test_gpt2s_final_norm_has_another_name():
    check_depths(EmbedderSettings(str(checkpoint("openai-community/gpt2"))))


def test_bert_has_no_final_norm(tiny_bert):
    check_depths(EmbedderSettings(str(tiny_bert)))


def check_depths(settings):
    found = depth_vectors(compose(settings), TEXTS)
    for depth in range(1, found.shape[1] + 1):
        cut = compose(dataclasses.replace(settings, num_layers=depth)).encode(TEXTS)
        np.testing.assert_allclose(found[:, depth - 1], cut, atol=1e-5)


def test_templates_are_kept():
    settings = load_recipe("prompteol").at(EMBEDDER, "nano")
    whole = compose(settings)
    np.testing.assert_allclose(depth_vectors(whole, TEXTS)[:, -1], whole.encode(TEXTS), atol=1e-5)


def test_the_loss_by_hand():
    embedder = compose(EmbedderSettings("polyvec/nano-lm"))
    queries, positives, negatives = TEXTS[:2], TEXTS[1:], [TEXTS[2], TEXTS[0]]
    found = probe_layers(embedder, queries, positives, negatives, batch_size=2, temperature=0.1)
    q, p, n = (
        embedder.encode(x, normalize_embeddings=True) for x in (queries, positives, negatives)
    )
    scores = q @ np.concatenate([p, n]).T / 0.1
    expected = np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(scores)])
    assert found.losses[-1] == pytest.approx(expected, abs=1e-4)


def test_the_choices_are_the_minima_of_both_halves():
    found = LayerProbe((3.0, 1.0, 2.0, 0.9, 0.5, 0.7))
    assert (found.small, found.large) == (2, 5)


def test_what_cannot_be_probed_is_refused():
    embedder = compose(EmbedderSettings("polyvec/nano-lm"))
    with pytest.raises(InputError, match="1, 2 queries, positives"):
        probe_layers(embedder, TEXTS[:1], TEXTS[:2], batch_size=1)
    layer = EmbedderSettings("polyvec/nano-lm", pooling="layer", pooling_settings={"layer": 2})
    with pytest.raises(ModelError, match="one pooling function"):
        depth_vectors(compose(layer), TEXTS)
