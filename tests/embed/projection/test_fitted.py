"""Fitted maps: against numpy and scikit-learn, refusals, storage."""

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from polyvec.embed.projection.fitted import FITTED
from polyvec.errors import CalibrationError, SettingsError, ShapeError

D = 6
CASES = {
    "standardize": {"in_features": D},
    "whiten": {"in_features": D},
    "whiten cut": {"in_features": D, "k": 3, "epsilon": 1e-6},
    "remove_pc": {"in_features": D, "k": 2},
    "pca": {"in_features": D, "k": 3},
    "abtt_pca_abtt": {"in_features": D, "k": 4, "remove": 1},
}
RNG = np.random.default_rng(0)
SAMPLE = RNG.normal(size=(80, D)) @ RNG.normal(size=(D, D)) * 2 + RNG.normal(size=D) * 3
VECTORS = torch.tensor(RNG.normal(size=(5, D)), dtype=torch.float32)


def build(case: str):
    return FITTED[case.split()[0]](**CASES[case])


def principal(sample: np.ndarray, k: int) -> np.ndarray:
    """The top k directions [D, k], by singular values rather than the covariance."""
    return np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2][:k].T


def test_every_fitted_map_has_a_case():
    assert {case.split()[0] for case in CASES} == set(FITTED)


@pytest.mark.parametrize("case", CASES)
def test_it_refuses_to_run_unfitted(case):
    module = build(case)
    assert not module.fitted
    with pytest.raises(CalibrationError, match=r"is not fitted: call Embedder.fit\(texts\)"):
        module(VECTORS)


@pytest.mark.parametrize("case", CASES)
def test_a_text_depends_on_itself_and_the_fit_alone(case):
    module = build(case).fit(SAMPLE)
    out = module(VECTORS)
    assert out.shape == (5, module.out_features) and module.fitted
    assert_close(torch.cat([module(row[None]) for row in VECTORS]), out)


@pytest.mark.equality
@pytest.mark.parametrize("case", CASES)
def test_settings_and_state_rebuild_the_map(case):
    module = build(case).fit(SAMPLE)
    settings = json.loads(json.dumps(module.settings()))
    assert CASES[case].items() <= settings.items()
    rebuilt = type(module)(**settings)
    rebuilt.load_state_dict(module.state_dict())
    assert rebuilt.fitted and int(rebuilt.num_texts) == 80
    assert_close(rebuilt(VECTORS), module(VECTORS), rtol=0, atol=0)


@pytest.mark.equality
@pytest.mark.parametrize("case", CASES)
def test_half_precision_changes_only_the_ends(case):
    module = build(case).fit(SAMPLE).half()
    half = VECTORS.bfloat16()
    assert module(half).dtype == torch.bfloat16
    assert_close(module(half), module(half.float()).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_samples_that_are_none(case):
    module = build(case)
    broken = SAMPLE.copy()
    broken[3, 1] = np.nan
    with pytest.raises(CalibrationError, match="at least 2 vectors"):
        module.fit(SAMPLE[:1])
    with pytest.raises(CalibrationError, match="at least 2 vectors"):
        module.fit(SAMPLE[0])
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        module.fit(broken)
    with pytest.raises(ShapeError, match="expects vectors of 6 dimensions"):
        module.fit(SAMPLE[:, :4])
    assert not module.fitted
    with pytest.raises(ShapeError, match="expects vectors of 6 dimensions"):
        module.fit(SAMPLE)(VECTORS[:, :4])


@pytest.mark.equality
@pytest.mark.parametrize("case", CASES)
def test_tensors_and_arrays_fit_alike_and_a_new_fit_replaces(case):
    module = build(case).fit(SAMPLE)
    again = build(case).fit(SAMPLE[:30] * 2).fit(torch.tensor(SAMPLE, requires_grad=True))
    assert_close(again(VECTORS), module(VECTORS), rtol=0, atol=0)
    assert int(again.num_texts) == 80


def test_standardised_as_scikit_learn_does():
    peer = pytest.importorskip("sklearn.preprocessing").StandardScaler().fit(SAMPLE)
    out = build("standardize").fit(SAMPLE)(VECTORS)
    np.testing.assert_allclose(out, peer.transform(VECTORS.numpy()), rtol=1e-4, atol=1e-5)


def test_a_constant_dimension_is_left_as_it_is():
    sample = SAMPLE.copy()
    sample[:, 2] = 0.1
    out = build("standardize").fit(sample)(VECTORS)
    assert_close(out[:, 2], VECTORS[:, 2])
    sample[:, 2] = 1e-60 * np.arange(80)  # varies less than float32 can say
    assert torch.isfinite(build("standardize").fit(sample)(torch.zeros(1, D))).all()


def test_whitened_covariance_is_the_identity():
    out = build("whiten").fit(SAMPLE)(torch.tensor(SAMPLE, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(np.cov(out.T), np.eye(D), atol=1e-3)
    np.testing.assert_allclose(out.mean(0), np.zeros(D), atol=1e-4)
    cut = build("whiten cut").fit(SAMPLE)(torch.tensor(SAMPLE, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(np.cov(cut.T), np.eye(3), atol=1e-3)
    np.testing.assert_allclose(cut, out[:, :3], atol=1e-3)  # the largest come first


def test_whitening_is_what_its_paper_computes():
    """u, s, vh = svd(cov); W = u @ diag(1 / sqrt(s)); signs of directions are free."""
    u, s, _ = np.linalg.svd(np.cov(SAMPLE.T))
    peer = (VECTORS.numpy() - SAMPLE.mean(0)) @ (u @ np.diag(1 / np.sqrt(s)))
    out = build("whiten").fit(SAMPLE)(VECTORS).numpy()
    np.testing.assert_allclose(np.abs(out), np.abs(peer), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(out @ out.T, peer @ peer.T, rtol=1e-3, atol=1e-2)


def test_epsilon_holds_back_directions_that_hardly_vary():
    sample = SAMPLE.copy()
    sample[:, 0] = 7
    with pytest.raises(CalibrationError, match="set epsilon above 0"):
        FITTED["whiten"](D, epsilon=0.0).fit(np.eye(D)[[0, 1, 0, 1, 0, 1, 0, 1]])
    loud = FITTED["whiten"](D, epsilon=1e-4).fit(sample)
    assert loud.matrix_DE.abs().max() <= 100 * 1.0001


@pytest.mark.parametrize(("case", "least"), [("whiten", 7), ("whiten cut", 4), ("pca", 4)])
def test_too_few_texts_for_the_directions_asked_for(case, least):
    assert build(case).fit(SAMPLE[:least]).fitted
    with pytest.raises(CalibrationError, match=f"got {least - 1}"):
        build(case).fit(SAMPLE[: least - 1])


def test_pca_as_scikit_learn_does():
    peer = pytest.importorskip("sklearn.decomposition").PCA(3).fit(SAMPLE)
    module = build("pca").fit(SAMPLE)
    out, theirs = module(VECTORS).numpy(), peer.transform(VECTORS.numpy())
    signs = np.sign((out * theirs).sum(0))
    np.testing.assert_allclose(out * signs, theirs, rtol=1e-4, atol=1e-4)
    largest = module.matrix_DE.abs().argmax(0)
    assert (module.matrix_DE[largest, torch.arange(3)] > 0).all()


def test_top_components_and_mean_are_gone():
    module = build("remove_pc").fit(SAMPLE)
    top = principal(SAMPLE, 2)
    centred = VECTORS.numpy() - SAMPLE.mean(0)
    out = module(VECTORS).numpy()
    np.testing.assert_allclose(out, centred - centred @ top @ top.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(out @ top, np.zeros((5, 2)), atol=1e-4)
    assert np.abs(centred @ top).max() > 1


def test_ppa_is_its_three_steps():
    def abtt(sample, vectors, k):
        top = principal(sample, k)
        return [(x - sample.mean(0)) @ (np.eye(len(top)) - top @ top.T) for x in (sample, vectors)]

    sample, vectors = abtt(SAMPLE, VECTORS.numpy().astype(float), 1)
    mean, top = sample.mean(0), principal(sample, 4)
    sample, vectors = ((x - mean) @ top for x in (sample, vectors))
    _, vectors = abtt(sample, vectors, 1)
    out = build("abtt_pca_abtt").fit(SAMPLE)(VECTORS).numpy()
    np.testing.assert_allclose(out @ out.T, vectors @ vectors.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pca", (6, 0)),
        ("pca", (6, 7)),
        ("whiten", (6, 7)),
        ("whiten", (6, None, -1.0)),
        ("remove_pc", (6, 6)),
        ("abtt_pca_abtt", (6, 4, 4)),
        ("abtt_pca_abtt", (6, 8, 1)),
    ],
)
def test_settings_that_cannot_be(name, settings):
    with pytest.raises(SettingsError):
        FITTED[name](*settings)


def test_one_dimension_is_enough():
    assert_close(
        FITTED["whiten"](1).fit([[1.0], [3.0]])(torch.tensor([[3.0]])),
        torch.tensor([[0.5**0.5]]),
    )
