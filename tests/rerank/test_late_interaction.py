"""Late interaction as a reranker, and fewer vectors a text."""

import numpy as np
import pytest

from polyvec.embed.projection.token_pooling import pool_tokens
from polyvec.errors import InputError, SettingsError, TruncationWarning
from polyvec.rerank.late_interaction import LateInteraction

PAIRS = [("a cat", "the cat sat"), ("a dog", "it rains"), ("a cat", "it rains"), ("a cat", "")]


def test_a_score_is_the_sum_of_each_query_tokens_best_match(minilm):
    found = LateInteraction(minilm).scores(PAIRS)
    for (query, document), score in zip(PAIRS[:3], found, strict=False):
        one, two = (
            minilm.encode(text, output_value="token_embeddings")[1:-1] for text in (query, document)
        )
        one, two = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (one, two))
        assert score == pytest.approx((one @ two.T).max(axis=1).sum(), abs=1e-4)
    assert found[0] > found[2]


def test_vectors_that_are_kept_change_nothing_and_are_few(minilm):
    model, documents = (
        LateInteraction(minilm, kept_tokens=40),
        [f"cat number {n}" for n in range(20)],
    )
    first = model.rank("the cat 7", documents)
    assert model._num_kept <= 40 and model._kept
    assert model.rank("the cat 7", documents) == first


def test_pooled_tokens_are_means_of_clusters():
    vectors = np.array([[1, 0], [0, 1], [0.9, 0.1], [0, 2]], np.float32)
    np.testing.assert_allclose(pool_tokens(vectors, 2), [[0.95, 0.05], [0, 1.5]], atol=1e-6)
    assert pool_tokens(vectors, 1) is vectors
    assert pool_tokens(vectors, 9).shape == (1, 2)
    random = np.random.default_rng(0).normal(size=(91, 8)).astype(np.float32)
    for factor in (2, 3, 4):
        pooled = pool_tokens(random, factor)
        assert len(pooled) <= 91 // factor
        assert np.abs(pooled).max() <= np.abs(random).max()
    with pytest.raises(SettingsError, match="factor is 0"):
        pool_tokens(random, 0)


def test_pooling_keeps_the_better_document_first(minilm):
    documents = ["a cat sat on a warm mat and slept", "rain fell on the roof of the old house"]
    for factor in (1, 2, 3):
        assert LateInteraction(minilm, factor=factor).rank("sleeping cat", documents)[0][0] == 0


def test_odd_input(minilm):
    with pytest.raises(InputError, match="str has no vectors of tokens"):
        LateInteraction("all-MiniLM-L6-v2")
    with pytest.raises(SettingsError, match="factor"):
        LateInteraction(minilm, factor=0)
    assert LateInteraction(minilm).scores([]).shape == (0,)
    with pytest.warns(TruncationWarning, match="1 of 2 texts are longer than the 256 tokens"):
        LateInteraction(minilm).rank("cat", ["cat " * 300, "dog"])
