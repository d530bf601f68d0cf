"""Imports by module paths, special tokens in texts, and a CrossEncoder made of modules."""

import subprocess
import sys

import numpy as np
import pytest
import sentence_transformers
from sentence_transformers.base.modules import Transformer
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from polyvec import Embedder
from polyvec.errors import InputError
from polyvec.sentence_transformers import CrossEncoder, SentenceTransformer

SEPARATED = ["A title[SEP]an abstract of it", "a [SEP] b [CLS] c [MASK]", "[SEP]", "plain"]


def test_only_the_first_word_of_an_import_changes():
    """Paths that 150 import lines of sentence-transformers' examples use."""
    from polyvec.sentence_transformers.base.sampler import BatchSamplers
    from polyvec.sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from polyvec.sentence_transformers.cross_encoder.trainer import CrossEncoderTrainer
    from polyvec.sentence_transformers.sentence_transformer.losses import CoSENTLoss
    from polyvec.sentence_transformers.sentence_transformer.model import SentenceTransformer as Same
    from polyvec.sentence_transformers.sparse_encoder.evaluation import SparseTripletEvaluator
    from polyvec.sentence_transformers.util.quantization import quantize_embeddings
    from polyvec.sentence_transformers.util.similarity import SimilarityFunction

    assert BatchSamplers is sentence_transformers.base.sampler.BatchSamplers
    for theirs in (BinaryCrossEntropyLoss, CoSENTLoss, SparseTripletEvaluator):
        assert theirs.__module__.startswith("sentence_transformers.")
    for ours in (CrossEncoderTrainer, quantize_embeddings, SimilarityFunction):
        assert ours.__module__.startswith("polyvec.")
    assert Same is SentenceTransformer
    with pytest.raises(ImportError, match="Nothing"):
        from polyvec.sentence_transformers.base.sampler import Nothing  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"polyvec\.sentence_transformers\.nowhere"):
        import polyvec.sentence_transformers.nowhere  # noqa: F401


def test_a_path_without_the_package_names_it():
    code = (
        "import sys; sys.modules['sentence_transformers'] = None\n"
        "from polyvec.sentence_transformers.sentence_transformer.losses import CoSENTLoss"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "pip install 'polyvec[sentence-transformers]'" in found.stderr.splitlines()[-1]


@pytest.mark.parametrize("options", [{}, {"prompt": "find[SEP]: "}, {"batch_size": 1}], ids=str)
def test_special_tokens_in_a_text_are_read_as_theirs(tiny_bert, options):
    """SPECTER's title[SEP]abstract."""
    wanted = sentence_transformers.SentenceTransformer(str(tiny_bert), device="cpu").encode(
        SEPARATED, **options
    )
    ours = SentenceTransformer(tiny_bert, device="cpu")
    np.testing.assert_allclose(ours.encode(SEPARATED, **options), wanted, atol=2e-6)
    parsed = Embedder(tiny_bert, special_tokens="parse")
    np.testing.assert_allclose(parsed.encode(SEPARATED, **options), wanted, atol=2e-6)
    plain = Embedder(tiny_bert)
    assert np.abs(plain.encode(SEPARATED, **options) - wanted)[:3].max() > 0.01
    ours.special_tokens = "text"
    np.testing.assert_allclose(
        ours.encode(SEPARATED, **options), plain.encode(SEPARATED, **options), atol=2e-6
    )


def test_how_special_tokens_are_read_is_saved_and_enters_the_fingerprint(tiny_bert, tmp_path):
    parsed, plain = Embedder(tiny_bert, special_tokens="parse"), Embedder(tiny_bert)
    assert parsed.fingerprint() != plain.fingerprint()
    parsed.save_pretrained(tmp_path / "parsed")
    again = Embedder(tmp_path / "parsed")
    assert again.special_tokens == "parse" and again.fingerprint() == parsed.fingerprint()
    assert np.array_equal(again.encode(SEPARATED), parsed.encode(SEPARATED))
    with pytest.raises(InputError, match="'parse'"):
        Embedder(tiny_bert, special_tokens="pars")


def test_a_cross_encoder_of_modules(tmp_path, minilm_folder):
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.5, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    module = Transformer(str(tmp_path), transformer_task="sequence-classification")
    pairs = [("a cat", "a kitten"), ("rain", "the Danube")]
    wanted = sentence_transformers.CrossEncoder(modules=[module], device="cpu").predict(pairs)
    ours = CrossEncoder(modules=[module], device="cpu")
    np.testing.assert_allclose(ours.predict(pairs), wanted, atol=2e-6)
    assert len(ours.rank("a cat", ["a kitten", "rain"], convert_to_tensor=True)) == 2
    with pytest.raises(InputError, match="modules="):
        CrossEncoder()
