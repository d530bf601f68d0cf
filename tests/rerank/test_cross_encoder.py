"""Cross-encoders: their scores are sentence-transformers', and a folder holds all of one."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from polyvec.errors import InputError, ModelError, TruncationWarning
from polyvec.rerank.cross_encoder import CrossEncoder
from polyvec.sentence_transformers import CrossEncoder as OfSentenceTransformers

PAIRS = [
    ("where is Paris?", "Paris is in France."),
    ("who wrote it", "a longer text about something else, which goes on for a while"),
    ("a", "b"),
]


def classifier(folder, minilm_folder, labels=1):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minilm_folder):
    return classifier(tmp_path_factory.mktemp("models") / "cross", minilm_folder)


def test_scores_are_those_of_sentence_transformers_class(folder):
    ours, theirs = CrossEncoder.load(folder), OfSentenceTransformers(folder)
    expected = theirs.predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(ours.scores(PAIRS), expected, atol=1e-5)
    long = [("a question of some words", "word " * 200)]
    with pytest.warns(TruncationWarning, match="1 of 1 texts are longer than the 64 tokens"):
        found = ours.scores(long)
    np.testing.assert_allclose(
        found, theirs.predict(long, activation_fn=torch.nn.Identity()), atol=1e-5
    )


@pytest.mark.medium
def test_scores_are_those_of_the_library(folder, tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="needs the extra 'train'")
    CrossEncoder.load(folder).save_pretrained(tmp_path / "saved")
    theirs = library.CrossEncoder(str(tmp_path / "saved"))
    expected = theirs.predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(CrossEncoder.load(folder).scores(PAIRS), expected, atol=1e-5)


def test_a_saved_one_is_the_same(folder, tmp_path):
    model = CrossEncoder.load(folder, max_length=32)
    model.save_pretrained(tmp_path / "saved")
    again = CrossEncoder.load(tmp_path / "saved")
    assert again.max_length == 32
    assert again.scores(PAIRS).tolist() == model.scores(PAIRS).tolist()


def test_an_instruction_stands_behind_the_query(folder):
    model = CrossEncoder.load(folder)
    with_it = model.scores([("a", "b")], ["only cats"])
    assert with_it == model.scores([("a only cats", "b")])
    with pytest.raises(InputError, match="1 instructions for 3 pairs"):
        model.scores(PAIRS, ["one"])


def test_what_has_no_order_is_refused(tmp_path, minilm_folder):
    with pytest.raises(ModelError, match="3 labels has no order"):
        CrossEncoder.load(classifier(tmp_path / "three", minilm_folder, labels=3))
    with pytest.raises(ModelError, match=r"weights are not stored.*train the model"):
        CrossEncoder.load(minilm_folder)
    with pytest.raises(ModelError, match="a language model"):
        CrossEncoder.load("polyvec/nano-lm")
