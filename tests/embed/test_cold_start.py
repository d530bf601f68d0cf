"""A known folder is embedded by its files alone, to the same vectors bit for bit."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    BertConfig,
    BertForPreTraining,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen2Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from polyvec import Embedder, Index, nano
from polyvec.data.texts import Record
from polyvec.embed.backbone import fused
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.direct import DirectBackbone
from polyvec.embed.formats import direct
from polyvec.embed.inputs.direct import DirectTokenizer
from polyvec.embed.inputs.tokens import TextTokenizer, TokenBatch
from polyvec.errors import InputError, ModelError, TokenizerError, TruncationWarning
from polyvec.storage import hashes

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789漢ü.,;:()"
SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
WORDS = [*SPECIAL.values(), *LETTERS, *(f"##{letter}" for letter in LETTERS), "cat", "##og"]
SMALL = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 300, "initializer_range": 0.5,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
MODELS = {
    "bert": BertConfig(**SMALL),
    "bert relu": BertConfig(**SMALL, hidden_act="relu", layer_norm_eps=1e-6),
    "roberta": RobertaConfig(**SMALL, type_vocab_size=1),
    "xlm-r": XLMRobertaConfig(**SMALL, type_vocab_size=1, pad_token_id=1),
    "llama": LlamaConfig(**GROUPED),
    "llama biased": LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True, head_dim=16),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
    "qwen2": Qwen2Config(**GROUPED, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
}
REFUSED = {
    "a silent activation": BertConfig(**SMALL, hidden_act="mish"),
    "a decoder": BertConfig(**SMALL, is_decoder=True),
    "scaled positions": LlamaConfig(
        **GROUPED, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "windows": MistralConfig(**GROUPED, sliding_window=100),
}
TEXTS = ["a cat", "", "the quick brown fox [SEP] jumps", "漢字 and Ünïcode", "long " * 400]
TOKENS = np.array([2, 40, 3])


@pytest.fixture(autouse=True)
def cold(tmp_path, monkeypatch):
    """A cache of its own, and a process in which the direct way is taken as in a cold one."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("oneDNN's layouts are used on x86 processors with AVX2 only")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(direct, "_saves_time", lambda: True)


@pytest.fixture
def save(tmp_path, minilm_folder):
    """Writes a folder of a random model of a config, or of a given model."""

    def written(config, **how):
        folder = tmp_path / "model"
        folder.mkdir()
        shutil.copytree(minilm_folder / "1_Pooling", folder / "1_Pooling")
        shutil.copy(minilm_folder / "modules.json", folder)
        write_tokenizer(folder)
        random_model(config).to(how.pop("dtype", torch.float32)).save_pretrained(folder, **how)
        return folder

    return written


def write_tokenizer(folder):
    """A small WordPiece tokenizer that, as MiniLM's, pads and truncates in its own file."""
    found = Tokenizer(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    found.normalizer, found.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    found.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    found.add_special_tokens(list(SPECIAL.values()))
    found.enable_padding(length=128)
    found.enable_truncation(128)
    found.save(str(folder / "tokenizer.json"))
    named = {f"{kind}_token": token for kind, token in SPECIAL.items()}
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 256, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def random_model(config):
    if isinstance(config, torch.nn.Module):
        return config
    torch.manual_seed(0)
    model = AutoModel.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or "norm" in name.lower():  # ones and zeros would hide a lost one
                parameter.normal_()
    return model


def both(folder, **options):
    """The folder loaded for the first time, and again."""
    first = Embedder.from_pretrained(folder, **options)
    assert type(first.backbone) is Backbone
    return first, Embedder.from_pretrained(folder, **options)


def vectors(embedder, texts=TEXTS):
    return embedder.encode(texts, truncate="silent")


def assert_direct(folder):
    """The second load is direct, gives the first one's bits, and stays direct while it does."""
    first, second = both(folder)
    assert type(second.backbone) is DirectBackbone
    for texts in (TEXTS, TEXTS[:1]):
        assert np.array_equal(vectors(first, texts), vectors(second, texts))
    assert first.settings() == second.settings()
    assert first.fingerprint() == second.fingerprint()
    assert first.vectors_fingerprint() == second.vectors_fingerprint()
    assert type(second.backbone) is DirectBackbone
    assert type(second.text_tokenizer) is DirectTokenizer
    return first, second


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_the_same_bit_for_bit(name, save):
    first, second = assert_direct(save(MODELS[name]))
    assert second.described() == first.described()
    assert type(second.backbone.model) is type(first.backbone.model)
    assert type(second.backbone) is Backbone
    assert np.array_equal(vectors(first), vectors(second))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_halves_are_computed_in_float32(dtype, save):
    assert_direct(save(MODELS["bert"], dtype=dtype))


def test_weights_in_several_files(save):
    folder = save(MODELS["llama"], max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_direct(folder)


@pytest.mark.parametrize(
    "model",
    [
        LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)),
        BertForPreTraining(BertConfig(**SMALL)),
    ],
    ids=["tied", "with a prefix"],
)
def test_weights_of_a_head(model, save):
    assert_direct(save(model))


def test_a_missing_pooler_is_drawn_by_transformers(save):
    model = AutoModel.from_config(BertConfig(**SMALL), add_pooling_layer=False)
    _, second = both(save(model))
    assert type(second.backbone) is Backbone


def test_a_byte_level_tokenizer(tmp_path):
    folder = tmp_path / "nano"
    Embedder.from_pretrained(nano.nano_lm_path(), pooling="last").save_pretrained(folder)
    first, second = both(folder)
    assert type(second.backbone) is DirectBackbone
    texts = [text for text in TEXTS if text]
    assert np.array_equal(vectors(first, texts), vectors(second, texts))


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_loaded_by_transformers(name, save):
    _, second = both(save(REFUSED[name]))
    assert type(second.backbone) is Backbone


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"attention": "causal"},
        {"pooling": "first"},
        {"layout": "padded"},
        {"max_seq_length": 20},
        {"truncate_dim": 8},
        {"prompts": {"query": "q: "}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_are_obeyed_by_transformers(options, save):
    folder = save(MODELS["bert"])
    both(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert type(Embedder.from_pretrained(folder, **options).backbone) is Backbone


def test_a_folder_that_warns_goes_on_to_warn(save):
    folder = save(MODELS["bert"])
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 1000}')
    for _ in range(2):
        with pytest.warns(UserWarning, match="max_seq_length 1000 exceeds"):
            assert type(Embedder.from_pretrained(folder).backbone) is Backbone


def test_a_load_draws_no_numbers(save):
    folder = save(MODELS["bert"])
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    _, second = both(folder)
    second.train()
    assert torch.equal(expected, torch.get_rng_state())


def test_warnings_of_a_load_that_fails_are_told(save):
    folder = save(MODELS["bert"])
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 1000}')
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "none"}')
    with pytest.warns(UserWarning, match="max_seq_length 1000"), pytest.raises(ModelError):
        Embedder.from_pretrained(folder)


def test_other_vectors_of_the_direct_way_are_not_taken(save, monkeypatch):
    monkeypatch.setattr("polyvec.embed.backbone.outline.BERT_TABLES", ("word", "word", "position"))
    _, second = both(save(MODELS["bert"]))
    assert type(second.backbone) is Backbone


def test_layers_that_transformers_refutes_are_not_taken(save, monkeypatch):
    """The direct way and the fused layers agree, and both are wrong."""
    monkeypatch.setitem(fused.ACTIVATIONS, "gelu", ("relu", ""))
    _, second = both(save(MODELS["bert"]))
    assert type(second.backbone) is Backbone


def test_changed_weights_are_compared_again(save):
    folder = save(MODELS["bert"])
    _, before = both(folder)
    expected = vectors(Embedder.from_pretrained(folder))
    other = random_model(MODELS["bert"])
    with torch.no_grad():
        other.encoder.layer[1].output.dense.weight[0] += 1
    other.save_pretrained(folder / "other")
    (folder / "other" / "model.safetensors").replace(folder / "model.safetensors")
    first, _ = assert_direct(folder)
    assert not np.array_equal(expected, vectors(first))
    # What was loaded before has its weights, though it had not read them.
    assert np.array_equal(expected, vectors(before))


@pytest.mark.parametrize("file", ["tokenizer.json", "1_Pooling/config.json", "config.json"])
def test_a_changed_setting_is_compared_again(file, save):
    folder = save(MODELS["bert"])
    both(folder)
    (folder / file).write_text((folder / file).read_text("utf-8") + "\n", "utf-8")
    assert type(Embedder.from_pretrained(folder).backbone) is Backbone


def test_a_folder_that_changes_under_a_loaded_model_is_an_error(save):
    folder = save(MODELS["bert"])
    _, second = both(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(ModelError, match="changed since it was loaded; load it again"):
        _ = second.backbone.model


def test_a_damaged_entry_is_no_error(save, tmp_path):
    folder = save(MODELS["bert"])
    first, _ = both(folder)
    (entry,) = (tmp_path / "cache" / "polyvec" / "direct").iterdir()
    whole = entry.read_text()
    for damaged in ("", "{", "[]", whole.replace('"eps": 1e-12', '"eps": 1e-11'), "null"):
        entry.write_text(damaged)
        again = Embedder.from_pretrained(folder)
        assert type(again.backbone) is Backbone
        assert np.array_equal(vectors(first), vectors(again))
    assert entry.read_text() == whole


def test_a_cache_that_cannot_be_written_is_no_error(save, tmp_path):
    (tmp_path / "cache").write_text("a file")
    first, second = both(save(MODELS["bert"]))
    assert type(second.backbone) is Backbone
    assert np.array_equal(vectors(first), vectors(second))


def test_training_changes_the_vectors(save):
    _, embedder = both(save(MODELS["bert"]))
    before = vectors(embedder)
    embedder.train()
    assert type(embedder.backbone) is Backbone
    assert embedder.backbone.model.training
    optimiser = torch.optim.SGD(embedder.parameters(), lr=0.1)
    embedder(TokenBatch.of_ids([TOKENS])).sum().backward()
    optimiser.step()
    embedder.eval()
    assert np.abs(vectors(embedder) - before).max() > 1e-4


def test_gradients_and_weights_made_for_them_outside_of_inference(save):
    """The model that a forward needs is not made of inference tensors."""
    _, embedder = both(save(MODELS["bert"]))
    batch = TokenBatch.of_ids([TOKENS])
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        embedder.backbone(batch)  # not what the direct way computes
    assert type(embedder.backbone) is Backbone
    embedder(batch).sum().backward()
    assert all(not p.is_inference() for p in embedder.parameters())
    assert embedder.backbone.model.embeddings.word_embeddings.weight.grad is not None


@pytest.mark.parametrize(
    "use",
    [
        copy.deepcopy,
        lambda embedder: pickle.loads(pickle.dumps(embedder)),
        lambda embedder: embedder.to(torch.float64).to(torch.float32),
        lambda embedder: embedder.load_state_dict(embedder.state_dict()) and embedder,
        lambda embedder: list(embedder.modules()) and embedder,
        lambda embedder: embedder.apply(lambda module: None),
        lambda embedder: embedder.tokenizer.tokenize("a cat") and embedder,
        lambda embedder: embedder.save_pretrained("saved") or Embedder.from_pretrained("saved"),
    ],
    ids=["deepcopy", "pickle", "to", "state", "modules", "apply", "hf", "save"],
)
def test_whatever_needs_the_model_gets_it(use, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = both(save(MODELS["bert"]))
    expected, found = use(first), use(second)  # copies are elsewhere in memory, with other bits
    assert np.array_equal(vectors(expected), vectors(found))
    assert len(list(found.parameters())) == len(list(first.parameters()))
    assert type(found.text_tokenizer.hf) is type(first.text_tokenizer.hf)
    assert type(found.text_tokenizer) is TextTokenizer


def test_a_shorter_length_is_that_of_a_plain_load(save):
    both_ways = both(save(MODELS["bert"]))
    for embedder in both_ways:
        embedder.max_seq_length = 20
        with pytest.raises(TokenizerError, match="leaves no room"):
            embedder.max_seq_length = 2
        with pytest.raises(InputError, match="300 positions"):
            embedder.max_seq_length = 301
    first, second = both_ways
    assert type(second.text_tokenizer) is DirectTokenizer
    for _ in range(2):
        assert np.array_equal(vectors(first), vectors(second))
        assert first.settings() == second.settings()
        assert second.tokenizer is second.text_tokenizer.hf  # the second time with the model
    assert type(second.text_tokenizer) is TextTokenizer
    assert second.max_seq_length == 20


def test_added_tokens_change_the_fingerprint(save):
    _, embedder = both(save(MODELS["bert"]))
    before = embedder.fingerprint()
    embedder.tokenizer.add_tokens(["polyvec"])
    assert embedder.fingerprint() != before


def test_settings_change_the_fingerprint(save):
    first, second = both(save(MODELS["bert"]))
    for embedder in (first, second):
        embedder.truncate_dim = 8
    assert first.fingerprint() == second.fingerprint()
    assert second.fingerprint() != Embedder.from_pretrained(first.backbone.model.name_or_path)


def test_a_model_that_is_made_later_is_in_evaluation_mode(save):
    _, embedder = both(save(MODELS["bert"]))
    modules = list(embedder.modules())
    assert type(embedder.backbone) is Backbone
    assert not [module for module in modules if module.training]


def test_a_backend_is_obeyed(save):
    pytest.importorskip("onnxruntime")
    first, second = both(save(MODELS["bert"]))
    second.backend = "onnx"
    assert type(second.backbone) is Backbone and second.backend == "onnx"
    np.testing.assert_allclose(second.encode("a cat"), first.encode("a cat"), atol=1e-5)


def test_hooks_on_the_backbone_stay(save):
    _, embedder = both(save(MODELS["bert"]))
    seen = []
    embedder.backbone.register_forward_hook(lambda *_: seen.append(1))
    vectors(embedder, ["a"])
    _ = embedder.backbone.model
    vectors(embedder, ["a"])
    assert seen == [1, 1]


def test_prompts_and_truncation_are_those_of_a_plain_load(save):
    first, second = both(save(MODELS["bert"]))
    for options in ({"prompt": "query: "}, {"prompt": "[SEP] ", "normalize_embeddings": True}):
        one, two = (e.encode(TEXTS, truncate="silent", **options) for e in (first, second))
        assert np.array_equal(one, two)
    with pytest.warns(TruncationWarning):
        second.encode(TEXTS)


def test_threads_embed_while_the_model_is_made(save):
    first, second = both(save(MODELS["bert"]))
    expected, found = vectors(first), []
    threads = [
        threading.Thread(target=lambda: found.extend(vectors(second) for _ in range(5)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert type(second.backbone.whole()) is Backbone
    for thread in threads:
        thread.join()
    assert len(found) == 15
    assert all(np.array_equal(each, expected) for each in found)


def test_the_hash_of_a_large_file_is_remembered_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(bytes(hashes.SMALL))
    first = hashes.file_sha256(path)
    entries = tmp_path / "cache" / "polyvec" / "hashes"
    assert not entries.exists()  # too young: it may change once more within a tick of the clock
    monkeypatch.setattr(hashes, "SETTLED_NS", -1)
    hashes.file_sha256(path)
    (entry,) = entries.iterdir()
    known = json.loads(entry.read_text())
    entry.write_text(json.dumps({**known, "sha256": "remembered"}))
    assert hashes.file_sha256(path) == "remembered"
    times = path.stat()
    time.sleep(0.05)
    path.write_bytes(b"1" + bytes(hashes.SMALL - 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hashes.file_sha256(path) not in (first, "remembered")


COLD = """
import sys
from polyvec.cli import main
status = main(sys.argv[1:])
heavy = sorted({"transformers", "torch._dynamo", "sympy", "scipy"} & set(sys.modules))
print(f"imported {heavy}", file=sys.stderr)
sys.exit(status)
"""


def run(arguments):
    """The output of a command in a process of its own, and the heavy packages that it imported."""
    found = subprocess.run(
        [sys.executable, "-c", COLD, *map(str, arguments)],
        input="a cat\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout, found.stderr.strip().splitlines()[-1]


@pytest.mark.medium
def test_a_cold_embed_imports_no_transformers(minilm_folder):
    known = Embedder.from_pretrained()
    out, imported = run(["embed"])
    assert imported == "imported []"
    assert np.array_equal(np.float32(json.loads(out)["embedding"]), known.encode("a cat"))


@pytest.mark.medium
def test_a_cold_search_imports_no_transformers(save, tmp_path):
    known = Embedder.from_pretrained(save(MODELS["bert"]))
    records = [Record(text, text) for text in ("a cat", "a dog")]
    Index.build(tmp_path / "index", records, known)
    out, imported = run(["search", tmp_path / "index", "a cat", "--model", tmp_path / "model"])
    assert "a cat" in out.splitlines()[0]
    assert imported == "imported []"


@pytest.mark.medium
def test_the_server_is_imported_without_transformers():
    pytest.importorskip("starlette", reason="needs the extra 'serve'")
    code = "import sys, polyvec.serve.app; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
