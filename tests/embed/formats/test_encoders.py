"""Encoder-decoders are read by their encoder; nomic's own words, and folders that need code."""

import numpy as np
import pytest
import torch
import transformers as tf
from families import tokenizer
from folders import modules
from numpy.testing import assert_allclose
from sentence_transformers import SentenceTransformer

from polyvec import Embedder
from polyvec.errors import EncoderOnlyWarning, SettingsError

WORDS = tokenizer()
BART = {
    "vocab_size": len(WORDS), "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
TEXTS = ["a cat", "the dog sat on the mat while nobody looks"]


def bart(folder):
    torch.manual_seed(0)
    model = tf.BartModel(tf.BartConfig(**BART)).eval()
    model.save_pretrained(folder)
    WORDS.save_pretrained(folder)
    return model


def test_a_bare_bart_is_read_by_its_encoder_and_saved_again(tmp_path):
    model = bart(tmp_path / "bart")
    found = Embedder.from_pretrained(tmp_path / "bart", pooling="mean")
    with torch.no_grad():
        ids = [WORDS(text, return_tensors="pt")["input_ids"] for text in TEXTS]
        right = [model.get_encoder()(input_ids=x).last_hidden_state[0].mean(0) for x in ids]
    assert_allclose(found.encode(TEXTS), torch.stack(right), atol=1e-5)
    found.save_pretrained(tmp_path / "saved")
    again = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode(TEXTS), found.encode(TEXTS))


def test_a_bart_in_a_folder_of_sentence_transformers_warns_of_other_vectors(tmp_path):
    bart(tmp_path)
    modules(tmp_path, "mean")
    with pytest.warns(EncoderOnlyWarning, match="decoder's states of a bart model"):
        Embedder.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["Bart", "Marian", "M2M100", "Pegasus"])
def test_sentence_transformers_refuses_a_saved_encoder_decoder(kind, tmp_path):
    """It would pool the decoder's states, or draw the encoder's weights at random."""
    config = getattr(tf, f"{kind}Config")(**BART)
    getattr(tf, f"{kind}Model")(config).save_pretrained(tmp_path / "in")
    WORDS.save_pretrained(tmp_path / "in")
    Embedder.from_pretrained(tmp_path / "in", pooling="mean").save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="own_way"):
        SentenceTransformer(str(tmp_path / "out"), device="cpu")


def test_nomic_reads_as_many_tokens_as_the_folder_says(tmp_path):
    from polyvec.embed.formats.nomic import nomic_config

    raw = {
        "model_type": "nomic_bert", "n_embd": 768, "n_positions": 8192, "n_layer": 12,
        "max_trained_positions": 2048, "rotary_scaling_factor": 2, "rotary_emb_base": 1000,
    }  # fmt: skip
    config = nomic_config(raw, tmp_path)
    assert (config.max_position_embeddings, config.n_positions) == (2048, 8192)
    assert config.rope_parameters["rope_type"] == "dynamic"
    plain = nomic_config(raw | {"rotary_scaling_factor": None}, tmp_path)
    assert plain.max_position_embeddings == 8192


@pytest.mark.parametrize("pooling", [3, ["mean", 3]])
def test_a_pooling_that_is_no_name(pooling, tmp_path):
    bart(tmp_path)
    with pytest.raises(SettingsError, match="expected a name or several"):
        Embedder.from_pretrained(tmp_path, pooling=pooling)
