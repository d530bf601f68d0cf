"""Maps between spaces: beside scipy and scikit-learn, with few pairs, and without any."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.linear_model import Ridge

from polyvec.errors import DataError, SettingsError, ShapeError
from polyvec.invert.defences import random_rotation
from polyvec.invert.space_map import SpaceMap, rotation


def points(count, size, seed=0):
    found = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def cosine(a, b):
    return float((a * b).sum(1).mean())


def test_rotation_is_scipys():
    a, b = points(50, 8), points(50, 8, seed=1)
    expected, _ = scipy.linalg.orthogonal_procrustes(a.astype(float), b.astype(float))
    np.testing.assert_allclose(rotation(a, b), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["ridge", "orthogonal"])
def test_as_many_pairs_as_dimensions_undo_a_secret_rotation(method):
    a, turn = points(400, 16), random_rotation(16, seed=3)
    found = SpaceMap.fit(method, a[:40] @ turn, a[:40])
    assert cosine(found.transform(a[40:] @ turn), a[40:]) > 0.999


def test_few_pairs_undo_less_of_it_than_many():
    a, turn = points(400, 64), random_rotation(64, seed=3)
    near = [
        cosine(SpaceMap.fit("orthogonal", a[:n] @ turn, a[:n]).transform(a[200:] @ turn), a[200:])
        for n in (5, 30, 200)
    ]
    assert near[0] < near[1] < near[2] and near[2] > 0.999


def test_the_ridge_map_is_scikit_learns_with_the_penalty_that_leaves_out_best():
    a, b = points(60, 8), points(60, 5, seed=1)
    found = SpaceMap.fit("ridge", a, b, alphas=(0.5,)).transform(a)
    expected = Ridge(alpha=0.5).fit(a, b).predict(a)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_perceptron_learns_what_no_linear_map_can():
    a = points(2000, 8)
    b = np.abs(a) - np.abs(a).mean(0)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    linear = cosine(SpaceMap.fit("ridge", a[:1500], b[:1500]).transform(a[1500:]), b[1500:])
    mlp = SpaceMap.fit("mlp", a[:1500], b[:1500], steps=200, learning_rate=5e-3)
    assert cosine(mlp.transform(a[1500:]), b[1500:]) > linear + 0.3


def test_the_adversarial_term_moves_other_texts_towards_the_targets():
    """Others lie elsewhere than the pairs; the discriminator's term brings their mean nearer."""
    a, turn = points(400, 8), random_rotation(8, seed=1)
    shifted = a[:, ::-1] + 1.0
    pairs, target = a[:20], a @ turn

    def far(**options):
        found = SpaceMap.fit("mlp", pairs, target[:20], steps=200, **options).mapped(shifted)
        return float(np.linalg.norm(found.mean(0) - target.mean(0)))

    assert far(adversarial=1.0, others_MA=shifted) < 0.7 * far()


@pytest.mark.medium
def test_matching_without_pairs_finds_a_rotation_of_clustered_vectors():
    draw = np.random.default_rng(0)
    centres = points(12, 16, seed=5) * draw.uniform(0.5, 2, (12, 1))
    a = centres[draw.integers(12, size=3000)] + 0.35 * points(3000, 16, seed=6)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    turn = random_rotation(16, seed=7)
    settings = {"num_clusters": 12, "rounds": 4, "refinements": 20, "final_clusters": 50}
    found = SpaceMap.fit("unpaired", a[:1500] @ turn, a[1500:], **settings)
    assert cosine(found.transform(a[:200] @ turn), a[:200]) > 0.95


def test_mistakes_are_one_clear_line():
    a = points(8, 4)
    with pytest.raises(SettingsError, match=r"'rigde' is not known\. Did you mean 'ridge'"):
        SpaceMap.fit("rigde", a, a)
    with pytest.raises(ShapeError, match="8 source vectors, 7 target vectors; give pairs"):
        SpaceMap.fit("ridge", a, a[:7])
    with pytest.raises(DataError, match="too few for 20 clusters"):
        SpaceMap.fit("unpaired", a, a)
    with pytest.raises(ShapeError, match="takes vectors of 4 dimensions, got 3"):
        SpaceMap.fit("ridge", a, a).transform(a[:, :3])
    with pytest.raises(SettingsError, match="adversarial needs others_MA"):
        SpaceMap.fit("mlp", a, a, adversarial=1.0)
