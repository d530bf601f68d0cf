"""Rotary scaling in GGUF files: transformers' own computation of it."""

import gguf_files
import numpy as np
import pytest
import torch
import transformers as tf
from gguf_files import TEXTS, by_hand

from polyvec import Embedder
from polyvec.embed.formats.gguf import loading
from polyvec.embed.formats.gguf.settings import llama3_divisors, rotary
from polyvec.errors import ModelError

LONG, SHORT = [1.0 + place for place in range(32)], [1.0 + place / 64 for place in range(32)]


SCALINGS = {
    "linear": (
        {"factor": 4.0}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    ),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 24},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
         "rope.scaling.original_context_length": 24},
    ),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192},
        {},
    ),
    "longrope": (
        {"long_factor": LONG, "short_factor": SHORT, "original_max_position_embeddings": 24,
         "attention_factor": 1.25},
        {"rope.scaling.original_context_length": 24, "rope.scaling.attn_factor": 1.25},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALINGS)
def test_vectors_with_rotary_scaling(kind, tmp_path):
    """transformers' own computation of it, for texts that are longer than the original context."""
    arch = "phi3" if kind == "longrope" else "llama"
    theirs, ours = SCALINGS[kind]
    fields = gguf_files.bpe_fields()
    plain = gguf_files.build(arch, len(fields["tokenizer.ggml.tokens"]))
    config = plain.config
    config.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0, **theirs}
    if kind == "longrope":
        config.original_max_position_embeddings = 24
    model = type(plain)(config).eval()
    model.load_state_dict(plain.state_dict())
    tensors = gguf_files.tensors_of(model, arch)
    if kind == "llama3":
        scaled = tf.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
        divisors = 10000.0 ** -(torch.arange(0, 64, 2) / 64) / scaled
        tensors["rope_freqs.weight"] = divisors.numpy()
    if kind == "longrope":
        tensors["rope_factors_long.weight"] = np.array(LONG, np.float32)
        tensors["rope_factors_short.weight"] = np.array(SHORT, np.float32)
    values = {**gguf_files.fields_of(model, arch), **fields, "pooling_type": 1, **ours}
    gguf_files.write(tmp_path / "m.gguf", arch, values, tensors)
    embedder = Embedder.from_pretrained(tmp_path / "m.gguf", layout="padded")
    assert len(embedder.tokenizer(TEXTS[1])["input_ids"]) > 24
    found = np.stack([embedder.encode([text])[0] for text in TEXTS])
    np.testing.assert_allclose(found, by_hand(model, embedder), atol=1e-5)
    assert np.abs(found - by_hand(plain, embedder)).max() > 1e-3


def test_rotary_scaling(tmp_path):
    """Linear, YaRN, and Llama 3's, of which the file holds the divisors."""

    def read(**metadata):
        model = gguf_files.build("llama", 420)
        tensors = gguf_files.tensors_of(model, "llama")
        factors = metadata.pop("factors", None)
        if factors is not None:
            tensors["rope_freqs.weight"] = factors.numpy()
        fields = gguf_files.fields_of(model, "llama")
        gguf_files.write(tmp_path / "m.gguf", "llama", {**fields, **metadata}, tensors)
        return rotary(loading.read_gguf(tmp_path / "m.gguf"), 64)

    plain = {"rope_type": "default", "rope_theta": 10000.0}
    assert read() == plain
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    assert read(**linear) == {**plain, "rope_type": "linear", "factor": 4.0}
    yarn = {**linear, "rope.scaling.type": "yarn", "rope.scaling.original_context_length": 32}
    assert read(**yarn) == {
        **plain, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32
    }  # fmt: skip
    scaled = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    config = tf.LlamaConfig(
        hidden_size=256, num_attention_heads=4, rope_parameters={**scaled, "rope_theta": 10000.0}
    )
    frequencies = tf.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
    plain_ones = 10000.0 ** -(torch.arange(0, 64, 2) / 64)
    divisors = plain_ones / frequencies
    torch.testing.assert_close(llama3_divisors(64, 10000.0, 32.0, 1.0, 4.0, 8192), divisors)
    assert read(factors=divisors) == {**plain, **scaled}
    with pytest.raises(ModelError, match=r"rope_freqs.* is no known scaling of Llama 3"):
        read(factors=divisors * 1.5)
