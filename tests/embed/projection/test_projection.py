"""Truncation, quantisation, similarity: by hand and against sentence-transformers."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from polyvec.embed.projection.dense import Dense
from polyvec.embed.projection.quantization import (
    PRECISIONS,
    Calibration,
    dequantize,
    quantize,
    truncate,
)
from polyvec.embed.projection.similarity import SIMILARITIES, similarity_matrix, similarity_pairs
from polyvec.errors import CalibrationError, InputError, ModelError

VECTORS = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)


def test_truncation_renormalises():
    """SILENT row 31: by hand, 3-4-5."""
    vectors = torch.tensor([[3.0, 4.0, 12.0]]) / 13
    assert_close(truncate(vectors, 2, renormalize=True), torch.tensor([[0.6, 0.8]]))
    assert_close(truncate(vectors, 2, renormalize=False), torch.tensor([[3.0, 4.0]]) / 13)


@pytest.mark.parametrize("dim", [0, -1, 4])
def test_truncation_to_an_impossible_size_is_refused(dim):
    with pytest.raises(InputError, match="between 1 and 3"):
        truncate(torch.ones(1, 3), dim, renormalize=True)


@pytest.mark.equality
@pytest.mark.parametrize("precision", PRECISIONS)
def test_quantised_as_sentence_transformers_does(precision):
    peer = pytest.importorskip("sentence_transformers.util").quantize_embeddings
    calibration = Calibration.of(VECTORS[:40])
    ours = quantize(VECTORS, precision, calibration)
    theirs = peer(VECTORS, precision, ranges=calibration.ranges_2E)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_integers_need_stored_ranges(precision):
    """SILENT row 16."""
    with pytest.raises(CalibrationError, match="stored ranges"):
        quantize(VECTORS, precision)
    with pytest.raises(CalibrationError, match="dimensions"):
        quantize(VECTORS[:, :5], precision, Calibration.of(VECTORS))


@pytest.mark.equality
def test_two_calls_with_stored_ranges_are_comparable():
    calibration = Calibration.of(VECTORS)
    whole = quantize(VECTORS, "int8", calibration)
    parts = [quantize(VECTORS[i : i + 1], "int8", calibration) for i in range(len(VECTORS))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_values_beyond_the_ranges_are_clipped():
    calibration = Calibration.of(np.array([[0.0, 0.0], [1.0, 1.0]]))
    out = quantize(np.array([[-5.0, 7.0]], np.float32), "uint8", calibration)
    assert out.tolist() == [[0, 255]]


def test_a_constant_dimension_does_not_divide_by_zero():
    calibration = Calibration.of(np.array([[2.0], [2.0]]))
    assert quantize(np.array([[2.0]], np.float32), "uint8", calibration).tolist() == [[0]]


@pytest.mark.parametrize("sample", [VECTORS[:1], VECTORS[0], np.array([[1.0], [np.nan]])])
def test_a_sample_that_gives_no_ranges_is_refused(sample):
    with pytest.raises(CalibrationError):
        Calibration.of(sample)


def test_bits_are_signs_most_significant_first():
    vector = np.array([[1, -1, 1, -1, -1, -1, -1, 1, 1, 0]], np.float32)
    assert quantize(vector, "ubinary").tolist() == [[0b10100001, 0b10000000]]
    assert quantize(vector, "binary").tolist() == [[0b10100001 - 128, 0]]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_dequantised_vectors_point_the_same_way(precision):
    calibration = Calibration.of(VECTORS)
    back = dequantize(quantize(VECTORS, precision, calibration), precision, calibration, dim=20)
    cosine = (
        (back * VECTORS).sum(1) / np.linalg.norm(back, axis=1) / np.linalg.norm(VECTORS, axis=1)
    )
    assert cosine.min() > (0.5 if "binary" in precision else 0.999)


def test_what_is_no_float_or_no_precision_is_refused():
    with pytest.raises(InputError, match="float"):
        quantize(np.ones((2, 2), np.int8), "binary")
    with pytest.raises(InputError, match="Did you mean 'int8'"):
        quantize(VECTORS, "int9")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_agree_with_sentence_transformers(name):
    util = pytest.importorskip("sentence_transformers.util")
    a, b = torch.from_numpy(VECTORS[:7]), torch.from_numpy(VECTORS[7:14])
    to_all = util.SimilarityFunction.to_similarity_fn(name)
    pairwise = util.SimilarityFunction.to_similarity_pairwise_fn(name)
    assert_close(similarity_matrix(a, b, name), to_all(a, b), atol=1e-5, rtol=1e-5)
    assert_close(similarity_pairs(a, b, name), pairwise(a, b), atol=1e-5, rtol=1e-5)


def test_similarity_by_hand():
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 8.0]])
    values = {name: similarity_matrix(a, b, name).item() for name in SIMILARITIES}
    assert values == pytest.approx({"cosine": 0.8, "dot": 32, "euclidean": -5, "manhattan": -7})


def test_distances_of_near_vectors_are_exact_for_many_rows():
    """The form by matrix product would give 0 or NaN here."""
    a = torch.full((100, 8), 1000.0)
    b = a + 1e-2
    found = similarity_matrix(a, b, "euclidean")
    assert_close(found, similarity_pairs(a, b, "euclidean").expand(100, 100))


def test_an_activation_of_unknown_name_is_refused():
    with pytest.raises(ModelError, match="activation"):
        Dense(2, 2, activation="Popen")
