"""Defences: what each does to vectors, by hand, and beside an independent calculation."""

import numpy as np
import pytest
from scipy import integrate, stats
from word_victim import Words

from polyvec.embed.projection.quantization import Calibration
from polyvec.errors import DataError, InputError, SettingsError, ShapeError
from polyvec.invert.defences import (
    DEFENCES,
    Directional,
    Gaussian,
    ProductQuantised,
    build_defence,
    calibrated_sigma,
)
from polyvec.invert.defended import Defended
from polyvec.invert.probes import KeywordAttack

SETTINGS = {"product": {"parts": 4, "codes": 8}, "truncate": {"size": 8}}


def points(count=64, size=16, seed=0):
    found = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_gives_a_vector_that_depends_on_nothing_but_its_text(name):
    """Not on the neighbours, nor on the last digits that a batch changes."""
    x = points()
    defence = DEFENCES.build(name, SETTINGS.get(name, {}), where="").fit(x)
    whole = defence.apply(x)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    assert whole.dtype == np.float32
    alone = np.concatenate([defence.apply(each[None] * (1 + 1e-7)) for each in x])
    np.testing.assert_allclose(alone, whole, atol=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "private", "directional", "rotation"])
def test_another_secret_seed_gives_other_vectors(name):
    one, two = (DEFENCES.build(name, {"seed": s}, where="").apply(points()) for s in (1, 2))
    assert np.abs(one - two).max() > 0.01


def test_a_rotation_keeps_every_similarity():
    x = points()
    turned = build_defence("rotation:seed=5").apply(x)
    np.testing.assert_allclose(turned @ turned.T, x @ x.T, atol=1e-5)
    assert np.abs((turned * x).sum(1)).mean() < 0.5


def test_gaussian_noise_has_its_standard_deviation():
    x = np.concatenate([points(500, 64, seed) for seed in range(4)])
    from polyvec.invert.defences import keyed_normal

    noise = keyed_normal(x, 9)
    assert stats.kstest(noise.ravel()[:20000], "norm").pvalue > 0.01
    near = (Gaussian(0.05, seed=9).apply(x) * x).sum(1).mean()
    assert near == pytest.approx(1 / np.sqrt(1 + 64 * 0.05**2), abs=0.01)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (1.0, 1e-6), (8.0, 1e-5), (50, 1e-3)])
def test_calibrated_noise_loses_just_delta(epsilon, delta):
    """The privacy loss by numerical integration of max(p - e^epsilon q, 0)."""
    sigma = calibrated_sigma(epsilon, delta, 2.0)

    def lost(x):
        return max(0.0, stats.norm.pdf(x, 2, sigma) - np.exp(epsilon) * stats.norm.pdf(x, 0, sigma))

    edge = epsilon * sigma**2 / 2 + 1  # where both are equal
    found, _ = integrate.quad(lost, edge, edge + 30 * sigma, limit=200, epsabs=1e-14)
    assert found == pytest.approx(delta, rel=1e-3)


def test_calibrated_noise_is_less_than_the_classical_bound():
    classical = np.sqrt(2 * np.log(1.25 / 1e-5)) * 2 / 0.9
    assert 0.7 * classical < calibrated_sigma(0.9, 1e-5, 2.0) < classical
    assert calibrated_sigma(5000.0, 1e-5, 2.0) < 0.1  # no overflow


def test_directional_noise_turns_by_the_angles_of_its_density():
    """Half of the angles are below the median of exp(-epsilon t) sin(t)^(E - 2)."""
    defence, size = Directional(epsilon=30.0, seed=1), 16

    def density(angle):
        return np.exp(-30.0 * angle) * np.sin(angle) ** (size - 2)

    x = points(3000, size)
    angles = np.arccos(np.clip((defence.apply(x) * x).sum(1), -1, 1))
    below = integrate.quad(density, 0, float(np.median(angles)))[0]
    assert below / integrate.quad(density, 0, np.pi)[0] == pytest.approx(0.5, abs=0.03)


def test_product_quantisation_by_hand():
    """Two parts of one dimension with two codes each: values become the means of their halves."""
    x = np.array([[0.6, 0.8], [0.8, 0.6], [-0.6, -0.8], [-0.8, -0.6]])
    defence = ProductQuantised(parts=2, codes=2).fit(x)
    np.testing.assert_allclose(defence.apply(x), np.sqrt(0.5) * np.sign(x), atol=1e-6)
    codes = defence.encode(x)
    assert (codes[0] == codes[1]).all() and (codes[0] != codes[2]).all()


def test_product_quantisation_finds_the_nearest_centre():
    x = points(200, 16)
    defence = ProductQuantised(parts=4, codes=16).fit(x)
    distances = ((x.reshape(200, 4, 1, 4) - defence._centres_MCS[None]) ** 2).sum(-1)
    assert (defence.encode(x) == distances.argmin(-1)).all()


def test_masked_and_truncated_dimensions_by_hand():
    x = np.array([[0.6, 0.0, 0.8]])
    np.testing.assert_allclose(build_defence("mask").apply(x), [[0, 0, 1]])
    np.testing.assert_allclose(build_defence("truncate:size=2").apply(x), [[1, 0]])
    np.testing.assert_allclose(build_defence("mask:count=1,value=0.6").apply(x), x, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gausian", "Did you mean 'gaussian'"),
        ("gaussian:sigma", "'sigma' is not key=number"),
        ("gaussian:sigma=-1", "sigma is -1.0, expected at least 0"),
        ("gaussian:sgima=1", "Did you mean 'sigma'"),
        ("private:epsilon=0.0", "expected epsilon above 0"),
    ],
)
def test_a_defence_that_is_none_is_one_clear_line(text, message):
    with pytest.raises(SettingsError, match=message):
        build_defence(text)


def test_what_was_not_fitted_or_does_not_fit_says_so():
    x = points(8)
    for name in ("int8", "product"):
        with pytest.raises(InputError, match="call fit first"):
            build_defence(name).apply(x)
    with pytest.raises(DataError, match="8 vectors are too few for 256 codes"):
        build_defence("product:parts=4").fit(x)
    with pytest.raises(ShapeError, match="cannot be cut in 5"):
        build_defence("product:parts=5,codes=2").fit(x)
    with pytest.raises(ShapeError, match="none left"):
        build_defence("mask:count=16").apply(x)
    with pytest.raises(ShapeError, match="size 64 of vectors of 16"):
        build_defence("truncate").apply(x)


def test_a_projection_hides_words_and_keeps_similarities():
    """Each text has one of eight words in its first dimensions, and noise in the others."""
    draw = np.random.default_rng(0)
    words = ["oslo", "lima", "rome", "cairo", "paris", "delhi", "quito", "tokyo"]
    labels = draw.integers(8, size=600)
    texts = [words[label] for label in labels]
    x = np.concatenate([0.5 * np.eye(8)[labels], 0.4 * draw.standard_normal((600, 8))], axis=1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)

    def read(vectors):
        attack = KeywordAttack(steps=200).fit(vectors[:400], texts[:400])
        guessed = attack.guess(vectors[400:], 1)
        return np.mean([a == [b] for a, b in zip(guessed, texts[400:], strict=True)])

    moved = {
        count: build_defence(f"projection:remove={count}").fit(x[:400], texts[:400]).apply(x)
        for count in (2, 7)
    }
    assert read(x) > 0.95 and read(x) > read(moved[2]) > read(moved[7])
    assert read(moved[7]) < 0.3  # chance is 0.125
    above = np.triu_indices(600, 1)
    near = [stats.spearmanr((each @ each.T)[above], (x @ x.T)[above])[0] for each in moved.values()]
    assert near[0] > near[1] > 0.5
    with pytest.raises(ShapeError, match="vectors and their texts"):
        build_defence("projection").fit(x)
    with pytest.raises(ShapeError, match="32 removed of 16 directions"):
        build_defence("projection").fit(x, texts)


def test_a_defended_model_is_a_model(minilm):
    """Its vectors are the defence's of the model's, each text is encoded once."""
    texts = ["a cat", "a dog", "a cat"]
    memo = {}
    defended = Defended(minilm, build_defence("truncate:size=8"), memo)
    plain = minilm.encode(texts)
    expected = plain[:, :8] / np.linalg.norm(plain[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(defended.encode(texts), expected, atol=1e-5)
    assert defended.get_embedding_dimension() == 8 and len(memo) == 2
    assert Defended(minilm, build_defence("mask")).get_embedding_dimension() == 384
    other = Defended(minilm, build_defence("gaussian"), memo)
    assert other.fingerprint() != defended.fingerprint()
    int8 = [build_defence("int8").fit(points(20, 384, seed)) for seed in (1, 2)]
    assert len({Defended(minilm, each).fingerprint() for each in int8}) == 2
    assert Calibration.of(plain).num_texts == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gaussian:sigma=inf", "sigma is inf"),
        ("private:epsilon=inf", "epsilon is inf"),
        ("directional:epsilon=inf", "epsilon is inf"),
        ("mask:value=nan", "value is nan"),
        ("product:parts=0", "parts is 0"),
        ("product:codes=-1", "codes is -1"),
        ("gaussian:sigma=1,sigma=2", "sigma is set twice"),
        ("gaussian:sigma=true", "^defence 'gaussian': setting 'sigma' is True, not float"),
        ("int8:_ranges=1", "setting '_ranges' is not known. None is known"),
    ],
)
def test_settings_that_would_give_no_vectors_are_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        build_defence(text)


@pytest.mark.parametrize("text", ["gaussian:sigma=1e39", "mask:value=1e300", "mask:value=1e30"])
def test_numbers_too_large_for_a_vector_are_refused(text):
    with pytest.raises(SettingsError, match="its numbers are too large"):
        build_defence(text).apply(points())


@pytest.mark.parametrize("text", ["product:parts=4,codes=8", "projection:remove=2"])
def test_vectors_of_another_size_than_was_fitted_are_refused(text):
    defence = build_defence(text).fit(points(), ["a cat", "a dog"] * 32)
    with pytest.raises(ShapeError, match="fitted on 16 dimensions, the vectors have 8"):
        defence.apply(points(size=8))


def test_a_text_of_which_the_model_knows_no_word_has_no_vector_to_defend():
    class Blank(Words):
        def vector(self, text):
            return super().vector(text) * (text != "?")

    found = Defended(Blank(), build_defence("truncate:size=5")).encode(["a cat", "?"])
    assert found.shape == (2, 5) and found[0].any() and not found[1].any()
