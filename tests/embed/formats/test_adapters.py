"""Adapters: on a base beside them or named by them, kept and merged, written and read again."""

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from families import tokenizer
from late_folders import pylate
from own_code import latent_vectors, nv_embed
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, LlamaModel

from polyvec import Embedder, MultiVectorEmbedder
from polyvec.embed.compose import compose
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import InputError, MissingExtraError, ModelError

TEXTS = ["the cat sleeps", "a river flows under the mountain and over it", "money"]
CONFIG, ST = "adapter_config.json", "sentence_transformers.models"
pytestmark = pytest.mark.medium


def sizes() -> dict:
    return {
        "vocab_size": len(tokenizer()), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
        "pad_token_id": 0,
    }  # fmt: skip


def base_model(folder: Path, kind: str = "llama") -> Path:
    """A tiny checkpoint with a tokenizer, of a language model or an encoder."""
    torch.manual_seed(0)
    if kind == "llama":
        config = LlamaConfig(**sizes(), num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
        model = LlamaForCausalLM(config)
    else:
        model = BertModel(BertConfig(**sizes()), add_pooling_layer=False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, settings, *, causal=False, seed=1, named=None) -> Path:
    """An adapter folder as peft writes it, with no weight left at zero."""
    cls = LlamaForCausalLM if causal else AutoModel
    model = get_peft_model(cls.from_pretrained(base), copy.deepcopy(settings))
    shake(model, seed)
    model.save_pretrained(folder)
    if named is not None:
        change(folder / CONFIG, base_model_name_or_path=named)
    return folder


def shake(model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.add_(0.2 * torch.randn(value.shape, generator=generator))
                assert name


def lora(**more) -> LoraConfig:
    return LoraConfig(r=4, target_modules=more.pop("target_modules", ["q_proj", "v_proj"]), **more)


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def modules(folder: Path, pooling: str = "mean") -> Path:
    """The files beside a transformer that make it a sentence-transformers folder."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (folder / "1_Pooling").mkdir()
    names = {"mean": "mean_tokens", "last": "lasttoken"}
    (folder / "1_Pooling/config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, f"pooling_mode_{names[pooling]}": True})
    )
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": path,
                    "type": f"sentence_transformers.models.{k}",
                }
                for i, (path, k) in enumerate(kinds)
            ]
        )
    )
    return folder


def load(folder: Path, **options) -> Embedder:
    return Embedder.from_pretrained(folder, pooling="mean", **options)


def means(model) -> np.ndarray:
    """Mean states of the texts one by one, by the model itself."""
    words = tokenizer()
    with torch.no_grad():
        states = [
            model(**words(text, return_tensors="pt"), output_hidden_states=True).hidden_states[-1]
            for text in TEXTS
        ]
    return torch.cat([state.mean(1) for state in states]).numpy()


def same(a, b, atol=1e-5) -> None:
    np.testing.assert_allclose(a, b, atol=atol)


def by_sentence_transformers(folder: Path) -> np.ndarray:
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS)


SETTINGS = {
    "lora": lora(),
    "rslora": lora(use_rslora=True, lora_alpha=16),
    "dora": lora(use_dora=True),
    "bias": lora(bias="lora_only"),
    "norms": lora(modules_to_save=["norm"]),
    "embeddings": lora(modules_to_save=["embed_tokens"]),
    "tokens": lora(trainable_token_indices=[7, 9]),
    "tokens-alone": TrainableTokensConfig(token_indices=[7, 9], target_modules=["embed_tokens"]),
    "every-linear": lora(target_modules="all-linear"),
    "pattern": lora(target_modules=r".*layers\.1.*\.(q|k)_proj"),
    "some-layers": lora(layers_to_transform=[1], layers_pattern="layers"),
    "ranks": lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 32}),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=4, target_modules=["q_proj", "v_proj"]),
}


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("merge", [False, True], ids=["kept", "merged"])
def test_an_adapter_alone_gives_pefts_states(tmp_path, kind, merge):
    base = base_model(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base, SETTINGS[kind])
    plain = means(AutoModel.from_pretrained(base))
    wanted = means(PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder))
    assert np.abs(plain - wanted).max() > 1e-3
    embedder = load(folder, merge_adapters=merge)
    same(embedder.encode(TEXTS), wanted)
    embedder.save_pretrained(tmp_path / "saved")
    same(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), wanted)
    same(by_sentence_transformers(tmp_path / "saved"), wanted)
    if not merge:
        saved = PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "saved")
        same(means(saved), wanted)
    assert (tmp_path / "saved" / CONFIG).is_file() is not merge


@pytest.mark.parametrize("task", ["CAUSAL_LM", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("causal", [True, False])
def test_an_adapter_of_a_language_model_fits_its_body(tmp_path, task, causal):
    base = base_model(tmp_path / "base")
    folder = adapter(
        tmp_path / "adapter", base, lora(task_type=task if causal else None), causal=causal
    )
    cls = LlamaForCausalLM if causal else AutoModel
    wanted = means(PeftModel.from_pretrained(cls.from_pretrained(base), folder))
    same(load(folder).encode(TEXTS), wanted)


def test_a_head_that_was_trained_too_is_left_out(tmp_path):
    base = base_model(tmp_path / "base")
    settings = lora(target_modules=["q_proj"], modules_to_save=["lm_head"])
    folder = adapter(tmp_path / "adapter", base, settings, causal=True)
    wanted = means(PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder))
    same(load(folder).encode(TEXTS), wanted)


def test_weights_of_an_adapter_in_a_bin_file_are_read_without_code(tmp_path):
    base = base_model(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base, lora())
    wanted = load(folder).encode(TEXTS)
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    same(load(folder).encode(TEXTS), wanted, 0)
    torch.save({"a": Path("pickled")}, folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model.bin: not the weights of an adapter"):
        load(folder)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside"])
def test_a_sentence_transformers_folder_with_an_adapter(tmp_path, beside):
    base = base_model(tmp_path / "base", "bert")
    folder = adapter(tmp_path / "adapter", base, lora(target_modules=["query"]))
    if beside:
        shutil.copytree(base, folder, dirs_exist_ok=True)
    else:
        tokenizer().save_pretrained(folder)
    wanted = by_sentence_transformers(modules(folder))
    embedder = Embedder.from_pretrained(folder)
    same(embedder.encode(TEXTS), wanted)
    saved = tmp_path / "saved"
    embedder.save_pretrained(saved)
    assert (saved / "adapter_model.safetensors").is_file()
    assert (saved / "model.safetensors").is_file() is (saved / "config.json").is_file() is beside
    same(Embedder.from_pretrained(saved).encode(TEXTS), wanted)
    same(by_sentence_transformers(saved), wanted)
    embedder.save_pretrained(saved)  # its own folder is replaced
    merged = Embedder.from_pretrained(saved, merge_adapters=True)
    merged.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / CONFIG).is_file()
    same(by_sentence_transformers(tmp_path / "merged"), wanted)


def test_a_folder_that_names_itself_as_base_and_is_saved_in_place(tmp_path):
    base = base_model(tmp_path / "base", "bert")
    adapter(base, base, lora(target_modules=["query"]))
    embedder = Embedder.from_pretrained(modules(base))
    wanted = by_sentence_transformers(base)
    embedder.save_pretrained(base)
    same(Embedder.from_pretrained(base).encode(TEXTS), wanted)
    same(by_sentence_transformers(base), wanted)


def test_an_adapter_saved_over_its_base_keeps_the_base(tmp_path):
    base = base_model(tmp_path / "base")
    embedder = load(adapter(tmp_path / "adapter", base, lora()))
    wanted = embedder.encode(TEXTS)
    embedder.save_pretrained(base)
    same(Embedder.from_pretrained(base).encode(TEXTS), wanted)


@pytest.mark.parametrize("named", ["../base", "base"])
def test_a_base_by_a_path_from_the_adapter(tmp_path, named):
    folder = tmp_path / "adapter"
    base = base_model((folder / named).resolve())
    adapter(folder, base, lora(), named=named)
    embedder = load(folder)
    same(embedder.encode(TEXTS), load(folder, base_model=base).encode(TEXTS))
    embedder.save_pretrained(tmp_path / "far/away/saved")
    same(by_sentence_transformers(tmp_path / "far/away/saved"), embedder.encode(TEXTS))


def test_a_base_by_hub_id(tmp_path, monkeypatch):
    base = base_model(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base, lora(), named="some-lab/Some-7B")
    with pytest.raises(
        ModelError, match=r"'some-lab/Some-7B'.* not available.*base_model="
    ) as found:
        load(folder, local_files_only=True, cache_folder=str(tmp_path / "cache"))
    assert str(folder) in str(found.value) and "\n" not in str(found.value)
    snapshot = tmp_path / "cache/models--some-lab--Some-7B/snapshots/abc"
    shutil.copytree(base, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    embedder = load(folder, local_files_only=True, cache_folder=str(tmp_path / "cache"))
    same(embedder.encode(TEXTS), load(folder, base_model=base).encode(TEXTS))
    embedder.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / CONFIG).read_text())
    assert saved["base_model_name_or_path"] == "some-lab/Some-7B"
    assert not (tmp_path / "saved/model.safetensors").is_file()


def two_stages(path: Path) -> tuple[Path, Path, Path, np.ndarray]:
    """A base, two adapters in LLM2Vec's manner, and the states of its loader's steps."""
    base = base_model(path / "base")
    first = adapter(path / "LLM2Vec-Tiny-mntp", base, lora(), seed=1)
    second = adapter(path / "LLM2Vec-Tiny-mntp-supervised", base, lora(), seed=2)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), first).merge_and_unload()
    return base, first, second, means(PeftModel.from_pretrained(model, second))


def test_the_second_of_two_adapters_stands_on_the_first(tmp_path):
    base, first, second, wanted = two_stages(tmp_path)
    same(load(second).encode(TEXTS), wanted)  # by its name, as on the hub
    moved = tmp_path / "mine"
    shutil.copytree(second, moved)
    same(load(moved, base_model=first).encode(TEXTS), wanted)
    change(moved / CONFIG, base_model_name_or_path="../LLM2Vec-Tiny-mntp")
    embedder = load(moved)
    same(embedder.encode(TEXTS), wanted)
    same(load(moved, merge_adapters=True).encode(TEXTS), wanted)
    embedder.save_pretrained(tmp_path / "saved")
    shutil.rmtree(first)  # what was merged is saved
    same(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), wanted)
    assert np.abs(load(second, base_model=base).encode(TEXTS) - wanted).max() > 1e-3


def test_a_second_adapter_whose_first_is_not_known(tmp_path):
    base, _, second, _ = two_stages(tmp_path)
    moved = tmp_path / "mine"
    shutil.copytree(second, moved)
    (moved / "llm2vec_config.json").write_text('{"pooling_mode": "mean"}')
    with pytest.raises(ModelError, match=r"after a first adapter.*base_model="):
        load(moved)
    load(moved, base_model=base)


def test_weights_that_match_nothing_are_an_error(tmp_path):
    base = base_model(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base, lora())
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    other = {key.replace("layers.1", "blocks.1"): value for key, value in weights.items()}
    save_file(other, path)
    with pytest.raises(ModelError, match=r"adapter was made for another model"):
        load(folder)
    save_file(dict(list(weights.items())[1:]), path)
    with pytest.raises(ModelError, match=r"is missing for LlamaModel"):
        load(folder)
    save_file({key: value[:1] for key, value in weights.items()}, path)
    with pytest.raises(ModelError, match=r"shape"):
        load(folder)
    save_file(weights, path)
    change(folder / CONFIG, target_modules=["w1", "w2"])
    with pytest.raises(ModelError, match=r"w1"):
        load(folder)


def test_what_peft_does_not_know(tmp_path, monkeypatch):
    base = base_model(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base, lora())
    change(folder / CONFIG, use_new_thing=False)
    load(folder)
    change(folder / CONFIG, use_new_thing=True)
    with pytest.raises(ModelError, match=r"'use_new_thing'.*pip install -U peft"):
        load(folder)
    change(folder / CONFIG, use_new_thing=None, peft_type="LORAX")
    with pytest.raises(ModelError, match=r"'LORAX'.*Did you mean 'LORA'.*pip install -U peft"):
        load(folder)
    change(folder / CONFIG, peft_type=None)
    with pytest.raises(ModelError, match=r"no peft_type"):
        load(folder)
    prompts = get_peft_model(
        LlamaForCausalLM.from_pretrained(base),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    )
    prompts.save_pretrained(tmp_path / "prompts")
    with pytest.raises(ModelError, match=r"'PROMPT_TUNING' adds virtual tokens"):
        load(tmp_path / "prompts")
    change(folder / CONFIG, peft_type="LORA")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polyvec\[peft\]'"):
        load(folder)


def test_files_that_are_missing(tmp_path):
    base = base_model(tmp_path / "base")
    with pytest.raises(InputError, match=r"base_model does nothing"):
        load(base, base_model=base)
    folder = adapter(tmp_path / "adapter", base, lora())
    change(folder / CONFIG, base_model_name_or_path=None)
    with pytest.raises(ModelError, match=r"names no base model.*base_model="):
        load(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"without adapter_model.safetensors"):
        load(folder, base_model=base)


def test_token_embeddings_that_were_added_come_with_the_adapter(tmp_path):
    base = base_model(tmp_path / "base")
    words = tokenizer()
    words.add_tokens(["<query>", "<passage>"])
    model = LlamaModel.from_pretrained(base)
    model.resize_token_embeddings(len(words))
    model = get_peft_model(model, lora())
    shake(model, 1)
    with torch.no_grad():
        model.get_input_embeddings().weight[-2:] = 1.5
    folder = tmp_path / "adapter"
    model.save_pretrained(folder, save_embedding_layers=True)
    words.save_pretrained(folder)
    with torch.no_grad():
        wanted = model(**words("<query> money", return_tensors="pt")).last_hidden_state.mean(1)
    embedder = load(folder)
    same(embedder.encode(["money"], prompt="<query> "), wanted)
    embedder.save_pretrained(tmp_path / "saved")
    saved = Embedder.from_pretrained(tmp_path / "saved")
    same(saved.encode(["money"], prompt="<query> "), wanted)


def test_attention_that_the_base_does_not_declare_is_refused_by_sentence_transformers(tmp_path):
    base = base_model(tmp_path / "base")
    embedder = load(adapter(tmp_path / "adapter", base, lora()), attention="bidirectional")
    embedder.save_pretrained(tmp_path / "saved")
    same(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), embedder.encode(TEXTS))
    with pytest.raises(Exception, match=r"own_way"):
        SentenceTransformer(str(tmp_path / "saved"))


def test_an_adapter_in_half_precision(tmp_path):
    base = base_model(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base, lora())
    wanted, found = load(folder).encode(TEXTS), load(folder, dtype="bfloat16").encode(TEXTS)
    cosine = (
        (wanted * found).sum(1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(found, axis=1)
    )
    assert cosine.min() > 0.99


def test_a_late_interaction_model_with_an_adapter(tmp_path):
    folder = pylate(tmp_path / "m", "bert", model_type="ColBERT")
    plain = MultiVectorEmbedder.from_pretrained(folder).encode_document(TEXTS)
    adapter(folder, folder, lora(target_modules=["query"]))
    found = MultiVectorEmbedder.from_pretrained(folder).encode_document(TEXTS)
    assert np.abs(found[0] - plain[0]).max() > 1e-3
    for name in (CONFIG, "adapter_model.safetensors"):
        shutil.move(folder / name, tmp_path / name)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), tmp_path)
    model.merge_and_unload().save_pretrained(folder)
    wanted = MultiVectorEmbedder.from_pretrained(folder).encode_document(TEXTS)
    for ours, theirs in zip(found, wanted, strict=True):
        same(ours, theirs)


def test_a_recipe_takes_an_adapter_as_its_backbone(tmp_path):
    base = base_model(tmp_path / "base")
    folder = adapter(tmp_path / "adapter", base, lora())
    embedder = compose(EmbedderSettings(backbone=str(folder), pooling="last"))
    wanted = Embedder.from_pretrained(folder, pooling="last").encode(TEXTS)
    same(embedder.encode(TEXTS), wanted)


def test_a_recipe_takes_published_latents(tmp_path):
    folder = nv_embed(tmp_path / "m")
    settings = {"num_latents": 6, "num_heads": 2, "head_size": 32}
    embedder = compose(
        EmbedderSettings(
            backbone=str(folder), pooling="latent_attn", pooling_settings=settings,
            attention="bidirectional", normalize=True, template="nv_embed",
        )
    )  # fmt: skip
    same(embedder.encode_document(TEXTS), latent_vectors(folder, TEXTS))


def test_an_adapter_whose_hub_has_only_a_bin_file_is_downloaded_whole(tmp_path, monkeypatch):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    asked = []

    def download(repo_id, *, allow_patterns, local_files_only, **options):
        asked.append((local_files_only, allow_patterns))
        if local_files_only:
            raise OSError("not here")
        (folder / CONFIG).write_text("{}")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert model_folder("some-lab/adapter") == folder
    assert asked[-1] == (False, ["adapter_model.bin"])


@pytest.mark.parametrize("place", ["emb.pth", "embedding/emb.pth"])
def test_token_embeddings_beside_an_adapter_are_refused(place, tmp_path):
    """bge-en-icl's training form: without them its new tokens would have random rows."""
    folder = adapter(tmp_path / "lora", base_model(tmp_path / "base"), lora())
    (folder / place).parent.mkdir(exist_ok=True)
    torch.save({"weight": torch.zeros(2, 32)}, folder / place)
    with pytest.raises(ModelError, match=r"token embeddings in emb\.pth .* are not read; merge"):
        Embedder.from_pretrained(folder)
