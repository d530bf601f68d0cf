"""Probes: what is planted in vectors is found, what is not is not; search without training."""

import numpy as np
import pytest

from polyvec.errors import DataError, InputError, ShapeError
from polyvec.invert.probes import KeywordAttack, attribute, word_overlap
from polyvec.invert.search import Proposer, search_invert

CITIES = ("paris", "oslo", "lima")


def planted(count=300, size=24, seed=0):
    """Texts that name a city, and vectors with its direction under noise."""
    draw = np.random.default_rng(seed)
    labels = [CITIES[i] for i in draw.integers(3, size=count)]
    texts = [f"they met in {label} today" for label in labels]
    directions = draw.standard_normal((3, size))
    vectors = np.stack([directions[CITIES.index(label)] for label in labels])
    return texts, labels, vectors + draw.standard_normal((count, size))


def test_a_planted_attribute_is_found_and_a_drawn_one_is_not():
    texts, labels, vectors = planted()
    found = attribute(vectors, texts, labels)
    assert found.auc > 0.95 and found.accuracy > found.majority + 0.3
    assert found.bag_of_words_auc == pytest.approx(1)
    drawn = np.random.default_rng(1).permutation(labels)
    assert 0.35 < attribute(vectors, texts, drawn).auc < 0.65


def test_planted_words_are_found_in_vectors_of_new_texts():
    texts, labels, vectors = planted()
    attack = KeywordAttack(steps=150).fit(vectors[:200], texts[:200])
    assert set(attack.words) == {*CITIES, "met", "today"}
    guessed = attack.guess(vectors[200:], k=3)
    share = np.mean([label in words for words, label in zip(guessed, labels[200:], strict=True)])
    assert share > 0.85
    other = attack.guess(vectors[200:][::-1], k=3)
    chance = np.mean([label in words for words, label in zip(other, labels[200:], strict=True)])
    assert share > chance + 0.3
    assert word_overlap(guessed, texts[200:])["f1"] > 0.9


def test_word_overlap_by_hand():
    """Of words that stand in half of it; a text without content words does not count."""
    got = word_overlap([["cat", "dog", "fox", "cow"], ["x"]], ["the cat and the bird", "the"])
    assert got == pytest.approx({"precision": 0.25, "recall": 0.5, "f1": 1 / 3})
    assert word_overlap([[]], ["a cat"])["f1"] == 0


def test_mistakes_of_probes():
    texts, labels, vectors = planted(20)
    with pytest.raises(DataError, match="at least 2 classes of at least 4"):
        attribute(vectors, texts, ["a"] * 20)
    with pytest.raises(ShapeError, match="20 vectors, 19 texts"):
        attribute(vectors, texts[:19], labels)
    with pytest.raises(DataError, match="no content word stands in 50"):
        KeywordAttack(min_count=50).fit(vectors, texts)
    with pytest.raises(InputError, match="call fit first"):
        KeywordAttack().guess(vectors)
    with pytest.raises(ShapeError, match="fitted on vectors of 24 dimensions, got 8"):
        KeywordAttack(steps=1).fit(vectors, texts).guess(vectors[:, :8])


@pytest.mark.medium
def test_search_without_training_comes_nearer_than_without_the_vector(minilm):
    texts = ["a dog runs in the snow", "the train to the city is late"]
    vectors = minilm.encode(texts)
    proposer = Proposer("polyvec/nano-lm")
    small = {"beams": 3, "top_k": 40, "max_tokens": 4, "prompt": ""}
    found = search_invert(vectors, minilm.encode, proposer, **small)
    crossed = minilm.encode([each.text for each in found])
    near = crossed @ vectors.T
    assert near.diagonal() == pytest.approx([each.cosine for each in found], abs=1e-3)
    assert near.diagonal().mean() > near[::-1].diagonal().mean() + 0.1
    assert 0 < found[0].num_encoded <= 40 + 3 * 120
    with pytest.raises(ShapeError, match="they are of another model"):
        search_invert(vectors[:, :8], minilm.encode, proposer, **small)


def test_texts_without_words_of_letters_have_an_attribute_too():
    texts = ["🙂 🐱" if row % 2 else "🙂 🐶" for row in range(24)]
    vectors = np.random.default_rng(0).standard_normal((24, 4))
    assert attribute(vectors, texts, [row % 2 for row in range(24)]).bag_of_words_auc == 1


def test_a_class_for_each_text_is_told_in_one_short_line():
    with pytest.raises(DataError, match=r"50 classes, the smallest .* of 1 texts") as caught:
        attribute(np.ones((50, 2)), ["a"] * 50, [f"name {row}" for row in range(50)])
    assert len(str(caught.value)) < 160
