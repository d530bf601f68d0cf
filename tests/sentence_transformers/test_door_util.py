"""polyvec.sentence_transformers.util beside sentence_transformers.util."""

import numpy as np
import pytest
import torch
from sentence_transformers import util as theirs

from polyvec.errors import InputError
from polyvec.sentence_transformers import SentenceTransformer, SimilarityFunction, util

FUNCTIONS = ["cos_sim", "dot_score", "euclidean_sim", "manhattan_sim"]
PAIRWISE = [f"pairwise_{name}" for name in FUNCTIONS]


@pytest.fixture
def vectors():
    torch.manual_seed(0)
    return torch.randn(40, 16)


@pytest.mark.parametrize("name", FUNCTIONS + PAIRWISE)
def test_similarities(vectors, name):
    a, b = vectors[:20], vectors[20:]
    wanted = getattr(theirs, name)(a, b)
    for form in (lambda x: x, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.to_sparse):
        found = getattr(util, name)(form(a), form(b))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_names_of_similarities():
    assert SimilarityFunction.possible_values() == theirs.SimilarityFunction.possible_values()
    assert theirs.SimilarityFunction(SimilarityFunction.DOT) == theirs.SimilarityFunction.DOT
    assert SimilarityFunction.to_similarity_fn("cosine") is util.cos_sim
    with pytest.raises(ValueError, match="Did you mean 'cosine'"):
        SimilarityFunction.to_similarity_fn("cosin")


@pytest.mark.parametrize("sizes", [{}, {"query_chunk_size": 3, "corpus_chunk_size": 7}])
@pytest.mark.parametrize("top_k", [1, 5, 100])
def test_semantic_search(vectors, sizes, top_k):
    for score in ("cos_sim", "dot_score"):
        options = {"top_k": top_k, **sizes}
        wanted = theirs.semantic_search(
            vectors[:9], vectors[9:], score_function=getattr(theirs, score), **options
        )
        found = util.semantic_search(
            vectors[:9].numpy(), vectors[9:], score_function=getattr(util, score), **options
        )
        for one, other in zip(found, wanted, strict=True):
            assert [hit["corpus_id"] for hit in one] == [hit["corpus_id"] for hit in other]
            assert np.allclose([h["score"] for h in one], [h["score"] for h in other], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"max_pairs": 10, "query_chunk_size": 7}])
def test_paraphrase_mining(vectors, options):
    wanted = theirs.paraphrase_mining_embeddings(vectors, **options)
    found = util.paraphrase_mining_embeddings(vectors, **options)
    assert [pair[1:] for pair in found] == [pair[1:] for pair in wanted]
    assert np.allclose([pair[0] for pair in found], [pair[0] for pair in wanted], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"max_pairs": 7}, {"top_k": 3, "query_chunk_size": 4}])
def test_equal_scores_are_in_the_same_order(options):
    """Of rows that occur several times many pairs have one score."""
    rows = torch.eye(5)[torch.tensor([0, 1, 0, 2, 1, 0, 3, 3, 2, 4, 1, 0])]
    wanted = theirs.paraphrase_mining_embeddings(rows, **options)
    assert util.paraphrase_mining_embeddings(rows, **options) == wanted


def test_paraphrase_mining_of_texts(tiny_bert):
    model = SentenceTransformer(tiny_bert)
    texts = ["a cat", "the rain in spring", "a cat.", "rain"]
    pairs = util.paraphrase_mining(model, texts)
    assert len(pairs) == 6 and pairs == sorted(pairs, reverse=True)


@pytest.mark.parametrize("batch_size", [3, 1024])
def test_community_detection(batch_size):
    torch.manual_seed(0)
    centres = torch.eye(4, 16).repeat_interleave(torch.tensor([9, 7, 5, 2]), dim=0)
    close = centres + 0.02 * torch.randn(centres.shape)
    options = {"threshold": 0.9, "min_community_size": 3, "batch_size": batch_size}
    wanted = theirs.community_detection(close, **options)
    found = util.community_detection(close.numpy(), **options)
    assert [set(group) for group in found] == [set(group) for group in wanted]
    assert [len(group) for group in found] == [9, 7, 5]
    assert util.community_detection([]) == []


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.filterwarnings("ignore:the ranges are")
def test_quantisation(vectors, precision):
    wanted = theirs.quantize_embeddings(vectors, precision)
    found = util.quantize_embeddings(vectors.numpy(), precision)
    assert found.dtype == wanted.dtype and np.array_equal(found, wanted)
    sample = 2 * vectors.numpy()
    wanted = theirs.quantize_embeddings(vectors, precision, calibration_embeddings=sample)
    found = util.quantize_embeddings(vectors, precision, calibration_embeddings=sample)
    assert np.array_equal(found, wanted)
    if precision in ("int8", "uint8"):
        with pytest.raises(InputError, match="single embedding"):
            util.quantize_embeddings(vectors[0], precision)


def test_the_rest_is_theirs():
    assert util.mine_hard_negatives is theirs.mine_hard_negatives
    assert util.maxsim is theirs.maxsim
    with pytest.raises(AttributeError, match="cos_simm"):
        _ = util.cos_simm
