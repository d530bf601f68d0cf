"""States of another size than hidden_size, layers that do not exist, and a caller's autocast."""

import numpy as np
import pytest
import torch
import transformers as tf
from families import FAMILIES, VOCAB, build, tokenizer
from numpy.testing import assert_allclose, assert_array_equal

from polyvec import Embedder
from polyvec.embed import parts
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.pooling.layers import LayerChoice, LayerConcat
from polyvec.embed.pooling.modules import WeightedLayers
from polyvec.errors import ModelError, SettingsError

TEXTS = ["a cat", "the dog sat on the mat while nobody looks", "mat"]
WIDE = {
    "opt_350m": (
        lambda: tf.OPTConfig(
            vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=16,
            do_layer_norm_before=False, pad_token_id=0,
        ),
        16,
    ),
    "embedding_gemma2": (
        lambda: tf.EmbeddingGemma2TextConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, global_head_dim=16,
            num_global_key_value_heads=1, hidden_size_per_layer_input=8, embedding_dim=24,
            sliding_window=4, sliding_window_pattern=2, max_position_embeddings=128,
        ),
        24,
    ),
}  # fmt: skip


def embedder(model, pooling="mean", **options) -> Embedder:
    words = TextTokenizer(tokenizer(), max_length=48)
    return Embedder.from_parts(Backbone(model, 0), words, pooling=pooling, **options)


@pytest.mark.parametrize("name", WIDE)
def test_the_dimension_is_that_of_the_states(name, tmp_path):
    config, size = WIDE[name][0](), WIDE[name][1]
    torch.manual_seed(0)
    plain = tf.AutoModel.from_config(config).eval()
    model = embedder(plain)
    assert model.get_embedding_dimension() == size == parts.state_size(config)
    plain = tf.AutoModel.from_config(WIDE[name][0]()).eval()
    plain.load_state_dict(model.backbone.model.state_dict())
    ids = [tokenizer()(text, return_tensors="pt")["input_ids"] for text in TEXTS]
    with torch.no_grad():
        right = [plain(input_ids=text).last_hidden_state[0].mean(0) for text in ids]
    assert_allclose(model.encode(TEXTS), torch.stack(right), atol=1e-5)
    assert model.encode([]).shape == (0, size)
    model.save_pretrained(tmp_path / "saved")
    assert_allclose(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), model.encode(TEXTS),
                    atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_declares_the_size_that_is_measured(name):
    model = build(name)
    assert parts.state_size(model.config) == Backbone(model, 0).hidden_size


@pytest.mark.parametrize(
    ("pooling", "layer"),
    [(LayerChoice(32, 3), 3), (LayerChoice(32, -4), -4), (LayerConcat(32, [0, 5]), 5)],
)
def test_a_layer_beyond_the_model_is_refused_at_once(pooling, layer):
    message = rf"layer {layer} does not exist; the model has layers 0 \(word embeddings\) to 2"
    with pytest.raises(SettingsError, match=message):
        embedder(build("bert"), pooling)


def test_weighted_layers_of_another_model_are_refused_at_once():
    with pytest.raises(ModelError, match="for 12 layers, BertModel has 2"):
        embedder(build("bert"), layers=WeightedLayers(12))


@pytest.mark.parametrize("name", ["bert", "mpnet", "llama"])
def test_autocast_around_a_call_changes_no_vector(name):
    model = embedder(build(name))
    plain = model.encode(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_array_equal(model.encode(TEXTS), plain)
        inside = embedder(build(name))
    assert inside.backbone.layout == model.backbone.layout
    assert_array_equal(inside.encode(TEXTS), plain)
    assert plain.dtype == np.float32
