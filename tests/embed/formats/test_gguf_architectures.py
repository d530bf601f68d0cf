"""Architectures of GGUF files: the vectors of the model that was written into the file."""

import gguf_files
import numpy as np
import pytest
import torch
import transformers as tf
from gguf_files import TEXTS, by_hand, make

from polyvec import Embedder
from polyvec.embed.formats.gguf import loading
from polyvec.errors import ModelError

KINDS = {"F32": 0.0, "F16": 3e-4, "Q8_0": 0.01, "Q4_K": 0.1}  # what rounding may change


# Those whose settings, names or weights are read in a way of their own; the others are medium.
FAST = ("llama", "qwen3", "gemma3", "qwen2moe", "falcon-40b", "bloom", "bert", "nomic-bert", "t5")
ALL = [a if a in FAST else pytest.param(a, marks=pytest.mark.medium) for a in gguf_files.MADE]


@pytest.mark.parametrize("arch", ALL)
def test_the_vectors_of_the_written_model(arch, tmp_path):
    """What llama.cpp's converter permutes, shifts or transposes is undone."""
    model = make(tmp_path / "model.gguf", arch)
    embedder = Embedder.from_pretrained(tmp_path / "model.gguf", pooling="mean", layout="padded")
    expected = by_hand(model, embedder)
    # Alone or in a batch, kernels of some CPUs round to 4e-6 of the largest number.
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.equality
@pytest.mark.medium
@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma2", "gpt2", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_copy_gives_the_same_vectors(arch, kind, tmp_path):
    """Bit for bit, and the same as the weights that the package gguf unpacks."""
    model = make(tmp_path / "model.gguf", arch, kind, pooling_type=1)
    embedder = Embedder.from_pretrained(tmp_path / "model.gguf")
    vectors = embedder.encode(TEXTS)
    embedder.save_pretrained(tmp_path / "saved")
    saved = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(vectors, saved.encode(TEXTS))
    assert saved.max_seq_length == embedder.max_seq_length == gguf_files.POSITIONS
    unpack(model, kind)
    np.testing.assert_allclose(vectors, by_hand(model, embedder), rtol=1e-4, atol=1e-4)


def unpack(model, kind: str) -> None:
    """Round the model's weights as the file has them, in the places that it has them in."""
    import gguf as library

    arch = {"gpt2": "gpt2"}.get(model.config.model_type, model.config.model_type)
    made, quantised = gguf_files.MADE[arch], library.GGMLQuantizationType[kind]
    tied = getattr(model.config, "tie_word_embeddings", False)
    for name, weight in model.state_dict().items():
        stored = made.change(name, weight, model.config).contiguous().numpy()
        whole = weight.ndim > 1 and stored.shape[-1] % (256 if kind == "Q4_K" else 1) == 0
        if not whole or kind == "F32" or (tied and name == "lm_head.weight"):
            continue
        rounded = library.dequantize(gguf_files.packed(stored, kind), quantised)
        change = torch.from_numpy(np.asarray(rounded, np.float32).reshape(stored.shape))
        if arch == "gpt2":
            weight.copy_(made.change(name, change, model.config))
        elif arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = 4 if "q_proj" in name else 2
            half = change.reshape(heads, -1, 2, change.shape[1])
            weight.copy_(half.swapaxes(1, 2).reshape(change.shape))
        else:
            weight.copy_(change)


@pytest.mark.parametrize(
    ("arch", "kind", "most"),
    [
        *(("llama", kind, most) for kind, most in KINDS.items()),
        ("qwen2moe", "Q8_0", KINDS["Q8_0"]),
        ("gpt-oss", "MXFP4", 0.15),
    ],
)
def test_quantisation_changes_little(arch, kind, most, tmp_path):
    model = make(tmp_path / "model.gguf", arch, kind)
    found = loading.load_gguf_model(tmp_path / "model.gguf", torch.float32, kind="lm").state_dict()
    assert found.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        away = float((found[name] - weight).norm() / weight.norm())
        assert away <= most, name
        assert weight.ndim == 1 or len(weight) == 1 or kind == "F32" or away > 1e-5


@pytest.mark.medium
@pytest.mark.parametrize(
    "arch",
    [
        "llama",
        "qwen2",
        "gemma2",
        "starcoder2",
        "phi3",
        "bloom",
        "lfm2",
        "mamba",
        "qwen35moe",
        "minimax-m2",
    ],
)
def test_transformers_own_load(arch, tmp_path):
    """The same file through transformers, de-quantised, pooled by hand."""
    make(tmp_path / "model.gguf", arch, "Q8_0")
    embedder = Embedder.from_pretrained(tmp_path / "model.gguf", pooling="mean")
    theirs = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="model.gguf",
        quantization_config=tf.GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()
    if arch == "phi3":
        theirs.config.sliding_window = 16  # transformers reads no window of Phi 3
    if arch == "gemma2":
        # Nor the soft caps of Gemma 2, and the scale of the first checkpoint is taken.
        for module in theirs.modules():
            if hasattr(module, "attn_logit_softcapping"):
                module.attn_logit_softcapping, module.scaling = 20.0, 32**-0.5
    np.testing.assert_allclose(embedder.encode(TEXTS), by_hand(theirs, embedder), atol=3e-5)


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["unigram", "roberta-bpe"])
def test_roberta_under_the_name_of_bert(kind, tmp_path):
    """Its positions start behind the padding token's, which the converter cuts off."""
    if kind == "unigram":
        _, fields = gguf_files.sentencepiece_fields(tmp_path, kind)
    else:
        fields = gguf_files.bpe_fields(kind)
        unused = fields["tokenizer.ggml.tokens"].index("ø")  # a byte that UTF-8 does not have
        fields["tokenizer.ggml.padding_token_id"] = unused
    pad = fields["tokenizer.ggml.padding_token_id"]
    torch.manual_seed(0)
    sizes = gguf_files.sizes(len(fields["tokenizer.ggml.tokens"]), type_vocab_size=1)
    sizes |= {"max_position_embeddings": 97 + pad, "pad_token_id": pad, "eos_token_id": 2}
    model = tf.XLMRobertaModel(tf.XLMRobertaConfig(**sizes), add_pooling_layer=False).eval()
    tensors = gguf_files.tensors_of(model, "bert")
    tensors["position_embd.weight"] = tensors["position_embd.weight"][pad + 1 :]
    values = {**gguf_files.fields_of(model, "bert"), **fields, "context_length": 96}
    gguf_files.write(tmp_path / "m.gguf", "bert", {**values, "pooling_type": 2}, tensors)
    embedder = Embedder.from_pretrained(tmp_path / "m.gguf")
    assert embedder.tokenizer("a")["input_ids"][0] == 0
    assert len(embedder.tokenizer("a")["input_ids"]) == 3
    expected = by_hand(model, embedder, lambda states: states[0])
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, atol=3e-5)
    assert embedder.max_seq_length == 96


def test_a_llama_with_a_window_is_a_mistral(tmp_path):
    fields = gguf_files.bpe_fields()
    sizes = gguf_files.sizes(len(fields["tokenizer.ggml.tokens"]), num_key_value_heads=2)
    torch.manual_seed(0)
    model = tf.MistralForCausalLM(tf.MistralConfig(**sizes, sliding_window=8)).eval()
    values = {**gguf_files.fields_of(model, "llama"), **fields, "attention.sliding_window": 8}
    tensors = gguf_files.tensors_of(model, "llama")
    gguf_files.write(tmp_path / "m.gguf", "llama", {**values, "pooling_type": 3}, tensors)
    embedder = Embedder.from_pretrained(tmp_path / "m.gguf")
    expected = by_hand(model, embedder, lambda states: states[-1])
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, atol=3e-5)


def test_dense_modules_behind_the_pooling(tmp_path):
    """EmbeddingGemma's two, of files that were converted with them."""
    fields = gguf_files.bpe_fields()
    model = gguf_files.build("gemma-embedding", len(fields["tokenizer.ggml.tokens"]))
    first, second = torch.randn(512, 256), torch.randn(256, 512)
    tensors = gguf_files.tensors_of(model, "gemma-embedding")
    tensors |= {"dense_2.weight": first.numpy(), "dense_3.weight": second.numpy()}
    values = {**gguf_files.fields_of(model, "gemma-embedding"), **fields, "pooling_type": 1}
    values |= {"dense_2_feat_in": 256, "dense_2_feat_out": 512, "dense_3_feat_in": 512}
    gguf_files.write(
        tmp_path / "m.gguf", "gemma-embedding", {**values, "dense_3_feat_out": 256}, tensors
    )
    embedder = Embedder.from_pretrained(tmp_path / "m.gguf")
    expected = by_hand(model, embedder) @ first.numpy().T @ second.numpy().T
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, rtol=1e-4, atol=1e-2)


def test_which_layers_see_a_window(tmp_path):
    """The pattern of the metadata, as a number or of each layer, else llama.cpp's own."""
    model = gguf_files.build("modern-bert", 420)
    fields = gguf_files.fields_of(model, "modern-bert")
    tensors = gguf_files.tensors_of(model, "modern-bert")

    def full(**pattern) -> list[int]:
        gguf_files.write(tmp_path / "m.gguf", "modern-bert", {**fields, **pattern}, tensors)
        kinds = loading.load_gguf_config(tmp_path / "m.gguf").layer_types
        return [place for place, kind in enumerate(kinds) if kind == "full_attention"]

    key = "attention.sliding_window_pattern"
    assert full() == [0, 3]
    assert full(**{key: 2}) == [0, 2]
    assert full(**{key: [True, True, False, True]}) == [2]
    with pytest.raises(ModelError, match="sliding_window_pattern is not of 4 layers"):
        full(**{key: [True, False]})


@pytest.mark.medium
def test_nemotron_as_transformers_loads_it(tmp_path):
    """Only where a half of each head is turned, which transformers takes whatever the file says."""
    make(tmp_path / "model.gguf", "nemotron", "Q8_0")
    embedder = Embedder.from_pretrained(tmp_path / "model.gguf", pooling="mean")
    theirs = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="model.gguf",
        quantization_config=tf.GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    np.testing.assert_allclose(embedder.encode(TEXTS), by_hand(theirs.eval(), embedder), atol=3e-5)


@pytest.mark.parametrize(
    ("arch", "metadata", "match"),
    [
        ("falcon-40b", {"tensor_data_layout": "reference"}, "tensor_data_layout 'reference'"),
        ("falcon-40b", {"attention.head_count_kv": 3}, "4 heads of queries, 3 of keys"),
        ("lfm2", {"attention.head_count_kv": [0, 3]}, "4 heads of queries, 3 of keys"),
        ("lfm2", {"attention.head_count_kv": [2]}, "head_count_kv is not of 2 layers"),
        ("lfm2", {"attention.head_count_kv": [1, 2]}, "head_count_kv is not of 2 layers"),
        ("lfm2", {"attention.head_count_kv": 2}, "head_count_kv is '2', expected list"),
        ("lfm2", {"attention.causal": False}, "lfm2 without a causal mask is not read"),
        ("mamba", {"attention.causal": False}, "mamba without a causal mask is not read"),
        ("qwen35", {"attention.causal": False}, "qwen35 without a causal mask is not read"),
        ("qwen35", {"ssm.time_step_rank": 5}, "2 layers, 2 heads of keys and 5 of values in 192"),
        ("qwen35", {"nextn_predict_layers": 2}, "0 layers, 2 heads of keys"),
        ("qwen35", {"ssm.state_size": 32}, r"ssm_conv1d.weight has shape \(256, 4\)"),
        ("nemotron", {"rope.dimension_count": 10**8}, "of each head 100000000 of 64 numbers"),
        ("nemotron", {"rope.dimension_count": 0}, "of each head 0 of 64 numbers"),
        ("nemotron", {"attention.head_count": 10**8}, "nemotron.attention.key_length is 0"),
        ("minimax-m2", {"expert_gating_func": 1}, "expert_gating_func is not 2"),
        ("mamba", {"ssm.dt_b_c_rms": True}, "Falcon Mamba is not read"),
        ("mamba", {"ssm.inner_size": 256}, "mamba.ssm.inner_size is 256"),
        ("gpt-oss", {"rope.freq_base_swa": 1e4}, "rope.freq_base_swa"),
        (
            "falcon-40b",
            {"attention.head_count_kv": 4},
            r"attn_qkv.weight has shape \(512, 256\), .* \(768, 256\)",
        ),
    ],
)
def test_what_is_not_read_of_an_architecture(arch, metadata, match, tmp_path):
    make(tmp_path / "m.gguf", arch, **metadata)
    with pytest.raises(ModelError, match=match):
        Embedder.from_pretrained(tmp_path / "m.gguf")


def test_falcon_2(tmp_path):
    """Several heads of keys and one norm; the converter leaves out its rotary base, 500,042."""
    options = {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}
    rope = {"rope_type": "default", "rope_theta": 500_042.0}
    fields = gguf_files.bpe_fields()
    made = gguf_files.MADE["falcon"]
    torch.manual_seed(0)
    small = made.build(len(fields["tokenizer.ggml.tokens"])).config.to_dict()
    config = tf.FalconConfig(**{**small, **options, "rope_parameters": rope})
    model = tf.FalconForCausalLM(config).eval()
    tensors = gguf_files.tensors_of(model, "falcon")
    values = {**gguf_files.fields_of(model, "falcon"), **fields, "pooling_type": 1}
    gguf_files.write(tmp_path / "m.gguf", "falcon", values, tensors)
    embedder = Embedder.from_pretrained(tmp_path / "m.gguf")
    np.testing.assert_allclose(embedder.encode(TEXTS), by_hand(model, embedder), atol=3e-5)
    del values["rope.freq_base"]
    gguf_files.write(tmp_path / "m.gguf", "falcon", values, tensors)
    with pytest.raises(ModelError, match="Falcon 2's rotary base is not in the file"):
        Embedder.from_pretrained(tmp_path / "m.gguf")


def test_the_encoder_of_a_whole_t5(tmp_path):
    """A file of flan-t5 has the decoder, too; only the encoder is read."""
    fields = gguf_files.tokenizer_fields("t5")
    small = gguf_files.MADE["t5"].build(len(fields["tokenizer.ggml.tokens"])).config
    config = tf.T5Config(**small.to_dict())
    config.is_encoder_decoder, config.decoder_start_token_id = True, 0
    torch.manual_seed(0)
    model = tf.T5ForConditionalGeneration(config).eval()
    model.config.tie_word_embeddings = False  # flan-t5's file has the head's matrix
    tensors = gguf_files.tensors_of(model, "t5")
    assert {"dec.blk.1.cross_attn_q.weight", "output.weight", "token_embd.weight"} <= set(tensors)
    values = {**gguf_files.fields_of(model, "t5"), **fields, "decoder_block_count": 2}
    gguf_files.write(tmp_path / "m.gguf", "t5", {**values, "pooling_type": 1}, tensors)
    embedder = Embedder.from_pretrained(tmp_path / "m.gguf")
    assert embedder.tokenizer("the").tokens() == ["\u2581the", "</s>"]
    expected = by_hand(model.encoder, embedder)
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, atol=3e-5)
    with pytest.raises(ModelError, match="of t5 only the encoder is read"):
        loading.load_gguf_model(tmp_path / "m.gguf", torch.float32, kind="lm")


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"expert_count": 0}, "qwen3moe.expert_count is 0"),
        ({"expert_used_count": 5}, "5 of 4 experts are used"),
        ({"expert_feed_forward_length": 32}, r"ffn_gate_exps.weight and blk.0.ffn_up_exps.weight"),
        ({"expert_gating_func": 2}, r"'qwen3moe.expert_gating_func' \('2'\) is not known"),
    ],
)
def test_experts_that_are_not_read(metadata, match, tmp_path):
    make(tmp_path / "m.gguf", "qwen3moe", **metadata)
    with pytest.raises(ModelError, match=match):
        Embedder.from_pretrained(tmp_path / "m.gguf")


def test_experts_of_different_sizes(tmp_path):
    fields = gguf_files.bpe_fields()
    model = gguf_files.build("qwen3moe", len(fields["tokenizer.ggml.tokens"]))
    tensors = gguf_files.tensors_of(model, "qwen3moe")
    tensors["blk.0.ffn_up_exps.weight"] = tensors["blk.0.ffn_up_exps.weight"][:, :32]
    values = {**gguf_files.fields_of(model, "qwen3moe"), **fields}
    gguf_files.write(tmp_path / "m.gguf", "qwen3moe", values, tensors)
    with pytest.raises(ModelError, match=r"ffn_up_exps.weight do not have the same shape"):
        Embedder.from_pretrained(tmp_path / "m.gguf")


def test_a_block_that_predicts_further_tokens(tmp_path):
    """Of Qwen 3.5: a layer more in the file, which no vector needs."""
    fields = gguf_files.bpe_fields()
    model = gguf_files.build("qwen35", len(fields["tokenizer.ggml.tokens"]))
    tensors = gguf_files.tensors_of(model, "qwen35")
    again = {n.replace("blk.1.", "blk.2."): t for n, t in tensors.items() if n.startswith("blk.1.")}
    tensors |= again | {"blk.2.nextn.eh_proj.weight": np.ones((256, 512), np.float32)}
    values = {**gguf_files.fields_of(model, "qwen35"), **fields, "pooling_type": 1}
    more = {"block_count": 3, "nextn_predict_layers": 1}
    gguf_files.write(tmp_path / "m.gguf", "qwen35", values | more, tensors)
    embedder = Embedder.from_pretrained(tmp_path / "m.gguf")
    np.testing.assert_allclose(embedder.encode(TEXTS), by_hand(model, embedder), atol=2e-5)
