"""similarity() of vectors in every precision: what the float vectors' similarity would be."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn.functional import normalize

from polyvec.errors import CalibrationError, InputError, ShapeError

TEXTS = ["a cat", "a kitten", "the price of crude oil rose", "a man plays the guitar", "rain"]


@pytest.fixture
def calibrated(minilm):
    minilm.calibrate(TEXTS * 20)
    yield minilm
    minilm.calibration = None


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_bits_are_compared_and_not_bytes(minilm, precision):
    """sentence-transformers#3121: unrelated texts scored 0.77."""
    packed = minilm.encode(TEXTS, precision=precision)
    signs = np.where(minilm.encode(TEXTS) > 0, 1.0, -1.0)
    expected = signs @ signs.T / 384
    np.testing.assert_allclose(minilm.similarity(packed, packed), expected, atol=1e-6)
    np.testing.assert_allclose(
        minilm.similarity_pairwise(packed, packed[::-1]), np.diag(expected[:, ::-1]), atol=1e-6
    )
    # A float query against stored bits.
    floats = minilm.encode(TEXTS)
    by_hand = floats @ signs.T / np.sqrt(384)
    np.testing.assert_allclose(minilm.similarity(floats, packed), by_hand, atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_levels_are_compared_as_the_values_they_stand_for(calibrated, precision):
    levels, floats = calibrated.encode(TEXTS, precision=precision), calibrated.encode(TEXTS)
    found, above = calibrated.similarity(levels, levels).numpy(), np.triu_indices(len(TEXTS), 1)
    assert spearmanr(found[above], (floats @ floats.T)[above]).statistic > 0.99
    np.testing.assert_allclose(found, floats @ floats.T, atol=0.02)
    tensor = torch.from_numpy(levels)
    np.testing.assert_array_equal(calibrated.similarity(list(tensor), tensor), found)


def test_levels_without_their_ranges_are_refused(calibrated):
    levels = calibrated.encode(TEXTS, precision="int8")
    calibrated.calibration = None
    with pytest.raises(CalibrationError, match="int8 needs stored ranges"):
        calibrated.similarity(levels, levels)


def test_integers_of_an_unknown_kind_are_refused(minilm):
    with pytest.raises(CalibrationError, match="width 32 are not clearly levels of 384 dimensions"):
        packed = minilm.encode(TEXTS, precision="ubinary", truncate_dim=256)
        minilm.similarity(packed, packed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_precision_are_float32(minilm, dtype):
    """In half precision 50 close vectors had 2 distinct scores."""
    first = torch.linspace(-1, 1, 384)[None]
    steps = torch.arange(50)[:, None] * 3e-4
    a, b = first.to(dtype), (first + steps * torch.sin(torch.arange(384.0))).to(dtype)
    expected = normalize(a.float(), dim=-1) @ normalize(b.float(), dim=-1).T
    assert minilm.similarity(a, b).dtype == torch.float32
    torch.testing.assert_close(minilm.similarity(a, b), expected)
    torch.testing.assert_close(minilm.similarity(a.float(), b), expected)
    torch.testing.assert_close(minilm.similarity_pairwise(a.expand(50, -1), b), expected[0])


def test_what_has_no_similarity_is_refused(minilm):
    vectors = minilm.encode(TEXTS)
    for other in (vectors[:, :256], vectors[None]):
        with pytest.raises(ShapeError, match="two matrices of equal width"):
            minilm.similarity(vectors, other)
    with pytest.raises(ShapeError, match="5 vectors and 4"):
        minilm.similarity_pairwise(vectors, vectors[:4])
    for other in ("a cat", TEXTS, {"a": 1}, [vectors[0], vectors[0][:5]]):
        with pytest.raises(InputError, match="similarity takes vectors"):
            minilm.similarity(vectors, other)
