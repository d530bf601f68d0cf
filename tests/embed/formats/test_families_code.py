"""Makers' own code: known families load as it computes, and trusted code runs as it is."""

import json

import numpy as np
import pytest
import torch
from families import tokenizer
from own_code import change, code, decoder, ids, latent_vectors, nv_embed, states, words
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch.nn import functional as F
from transformers import AutoModel, MistralConfig

from polyvec import Embedder
from polyvec.embed.formats.families import FAMILIES, family_of
from polyvec.errors import ModelError, OwnCodeWarning

pytestmark = [pytest.mark.medium, pytest.mark.filterwarnings("ignore")]
TEXTS = ["the cat sat", "two very long text : nobody looks while a cat sat on the mat", "dog"]


def same(found, wanted, atol=1e-5) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), atol=atol)


def unit(vectors: list[torch.Tensor]) -> torch.Tensor:
    return F.normalize(torch.stack(vectors), dim=-1)


@pytest.mark.parametrize(
    "name", ["modeling_qwen.Qwen2Model", "Alibaba-NLP/gte-Qwen2-7B--modeling_qwen.Qwen2Model"]
)
@pytest.mark.parametrize("trusted", [False, True])
def test_gte_qwen2_sees_every_token_and_pools_eos(tmp_path, name, trusted):
    folder = decoder(tmp_path / "m", "qwen2", architectures=["Qwen2ForCausalLM"], **code(name))
    change(folder / "tokenizer_config.json", add_eos_token=True)
    model = AutoModel.from_pretrained(folder)
    wanted = unit([states(model, [1, *ids(text), 2])[-1] for text in TEXTS])
    embedder = Embedder.from_pretrained(folder, trust_remote_code=trusted)
    assert str(embedder.backbone.verdict).startswith("bidirectional from the first")
    same(embedder.encode(TEXTS), wanted)
    embedder.save_pretrained(tmp_path / "saved")
    same(Embedder.from_pretrained(tmp_path / "saved").encode(TEXTS), wanted)
    same(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), wanted)


def test_gritlm_is_bidirectional_without_a_window_and_leaves_its_prompt_out(tmp_path):
    folder = decoder(
        tmp_path / "m", "mistral", sliding_window=4, **code("modeling_gritlm7b.MistralModel")
    )
    config = MistralConfig.from_pretrained(folder, sliding_window=None)
    model = AutoModel.from_pretrained(folder, config=config)

    def grit(prompt: str) -> torch.Tensor:
        first = [1, *ids(prompt)]
        return unit([states(model, first + ids(t))[len(first) :].mean(0) for t in TEXTS])

    embedder = Embedder.from_pretrained(folder)
    same(embedder.encode(TEXTS), grit("<|embed|>\n"))
    same(embedder.encode_document(TEXTS), grit("<|embed|>\n"))
    query = "<|user|>\nlooks for text\n<|embed|>\n"
    same(embedder.encode_query(TEXTS, prompt=query), grit(query))


def llm2vec_vectors(model, start: str, end: str, instruction: str = "") -> torch.Tensor:
    first, last = [1, *ids(start + instruction)], ids(end)
    kept = [states(model, first + ids(t) + last)[len(first) :] for t in TEXTS]
    return torch.stack([each.mean(0) for each in kept])


@pytest.mark.parametrize(
    ("kind", "base", "start", "end"),
    [
        ("mistral", "mistralai/Mistral-7B-Instruct-v0.2", "[INST] ", " [/INST]"),
        ("llama", "princeton-nlp/Sheared-LLaMA-1.3B", "", ""),
        ("llama", "meta-llama/Meta-Llama-3-8B-Instruct",
         "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        ("qwen2", "Qwen/Qwen2-7B-Instruct", "<|im_start|>user\n", "<|im_end|>"),
    ],
)  # fmt: skip
def test_llm2vec_merges_the_first_adapter_and_keeps_the_second(tmp_path, kind, base, start, end):
    plain = decoder(tmp_path / "base", kind)
    folders, model = [], AutoModel.from_pretrained(plain)
    for seed, name in enumerate(("LLM2Vec-X-mntp", "LLM2Vec-X-mntp-supervised")):
        torch.manual_seed(seed)
        settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(AutoModel.from_pretrained(plain), settings).save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
        model = PeftModel.from_pretrained(model, tmp_path / name).merge_and_unload()
    raw = json.loads((plain / "config.json").read_text())
    cls = f"modeling_{kind}_encoder.{kind.title()}EncoderModel"
    change(folders[0] / "config.json", **raw, **code(cls))
    change(folders[0] / "config.json", _name_or_path=base)
    words().save_pretrained(folders[0])
    change(folders[0] / "adapter_config.json", base_model_name_or_path=str(plain))
    change(folders[1] / "adapter_config.json", base_model_name_or_path=str(plain))
    embedder = Embedder.from_pretrained(folders[1])
    assert str(embedder.backbone.verdict).startswith("bidirectional from the first")
    same(embedder.encode(TEXTS), llm2vec_vectors(model, start, end))
    task = "looks for text: "
    same(embedder.encode(TEXTS, prompt=task), llm2vec_vectors(model, start, end, task))
    embedder.save_pretrained(tmp_path / "saved")
    saved = Embedder.from_pretrained(tmp_path / "saved")
    same(saved.encode(TEXTS, prompt=task), llm2vec_vectors(model, start, end, task))
    merged = Embedder.from_pretrained(folders[1], merge_adapters=True)
    same(merged.encode(TEXTS), llm2vec_vectors(model, start, end))


def test_llm2vecs_own_settings_are_read(tmp_path):
    folder = decoder(tmp_path / "m", "llama", **code("llm2vec.models.bidirectional_llama.X"))
    change(folder / "config.json", auto_map={"AutoModel": "bidirectional_llama.LlamaBiModel"})
    change(folder / "llm2vec_config.json", pooling_mode="last_token")
    model = AutoModel.from_pretrained(folder)
    wanted = torch.stack([states(model, [1, *ids(text)])[-1] for text in TEXTS])
    same(Embedder.from_pretrained(folder).encode(TEXTS), wanted)
    change(folder / "llm2vec_config.json", pooling_mode="weighted_mean")
    pooled = [states(model, [1, *ids(text)])[1:] for text in TEXTS]
    places = [torch.arange(1.0, 1 + len(each))[:, None] for each in pooled]
    wanted = [(x * n).sum(0) / n.sum() for x, n in zip(pooled, places, strict=True)]
    same(Embedder.from_pretrained(folder).encode(TEXTS), torch.stack(wanted))
    change(folder / "llm2vec_config.json", pooling_mode="bos_token")
    with pytest.raises(ModelError, match="'bos_token' of LLM2Vec is not supported"):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize(("pooling", "place"), [("avg", None), ("last", -1), ("cls", 0)])
def test_llama_nemotron_needs_none_of_its_code(tmp_path, pooling, place):
    folder = decoder(tmp_path / "m", "llama")
    model = AutoModel.from_pretrained(folder)
    change(
        folder / "config.json", model_type="llama_bidirec", pooling=pooling,
        architectures=["LlamaBidirectionalModel"],
        **code("llama_bidirectional_model.LlamaBidirectionalModel"),
    )  # fmt: skip
    found = [states(model, [1, *ids(text)]) for text in TEXTS]
    wanted = torch.stack([f.mean(0) if place is None else f[place] for f in found])
    same(Embedder.from_pretrained(folder).encode(TEXTS), wanted)


@pytest.mark.parametrize("modules", [False, True], ids=["bare", "modules.json"])
def test_nv_embed_loads_its_decoder_and_its_latents(tmp_path, modules):
    folder = nv_embed(tmp_path / "m")
    if modules:
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        types = [
            {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{k}"}
            for i, (p, k) in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(types))
        pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
        change(folder / "1_Pooling/config.json", **pooling, include_prompt=False)
    embedder = Embedder.from_pretrained(folder)
    same(embedder.encode(TEXTS), latent_vectors(folder, TEXTS))
    task = "Instruct: looks for text\nQuery: "
    same(embedder.encode(TEXTS, prompt=task), latent_vectors(folder, TEXTS, task))
    embedder.save_pretrained(tmp_path / "saved")
    saved = Embedder.from_pretrained(tmp_path / "saved")
    same(saved.encode(TEXTS, prompt=task), latent_vectors(folder, TEXTS, task))
    found = Embedder.from_pretrained(folder, dtype="bfloat16").encode(TEXTS)
    assert (found * latent_vectors(folder, TEXTS).numpy()).sum(1).min() > 0.99


def test_nv_embed_without_all_of_its_latents_is_refused(tmp_path):
    folder = nv_embed(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights["latent_attention_model.latents"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"latents \['latents_ND'\] are missing"):
        Embedder.from_pretrained(folder)


def test_classes_of_other_makers_are_of_no_family(tmp_path):
    for name in ("modeling_own.OwnModel", "modeling_qwen.Qwen2ForCausalLM", "modeling_llama.A"):
        change(tmp_path / "config.json", model_type="qwen2", auto_map={"AutoModel": name})
        assert family_of(tmp_path) is None
    change(tmp_path / "config.json", auto_map={"AutoModelForCausalLM": next(iter(FAMILIES))})
    assert family_of(tmp_path) is None


def test_code_that_does_not_run_is_told(tmp_path):
    folder = decoder(tmp_path / "m", "llama", **code("modeling_own.OwnModel"))
    with pytest.warns(OwnCodeWarning, match=r"modeling_own.OwnModel.*trust_remote_code=True"):
        Embedder.from_pretrained(folder)
    for broken in ("modeling_own.OwnModel", ["a"]):
        change(folder / "config.json", auto_map=broken)
        with pytest.raises(ModelError, match=r"auto_map is .*, expected names such as"):
            Embedder.from_pretrained(folder)


OWN = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class OwnConfig(PretrainedConfig):
    model_type = "own_model"
    def __init__(self, vocab_size=100, hidden_size=32, num_hidden_layers=1, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**kwargs)

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        first = self.words(input_ids)
        real = attention_mask[..., None].to(first.dtype)
        all_ = (first * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        last = torch.tanh(self.mix(first + all_))
        return BaseModelOutput(last_hidden_state=last{HIDDEN})
"""


@pytest.mark.parametrize("hidden", [", hidden_states=(first, last)", ""], ids=["layers", "last"])
def test_code_in_the_folder_runs_only_if_it_is_trusted(tmp_path, hidden):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "modeling_own.py").write_text(OWN.replace("{HIDDEN}", hidden))
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    change(
        folder / "config.json", model_type="own_model", vocab_size=len(tokenizer()),
        architectures=["OwnModel"], auto_map=classes,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    shapes = {"words.weight": (len(tokenizer()), 32), "mix.weight": (32, 32), "mix.bias": (32,)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer().save_pretrained(folder)
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        Embedder.from_pretrained(folder)
    embedder = Embedder.from_pretrained(folder, trust_remote_code=True, pooling="mean")
    theirs = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    same(embedder.encode(TEXTS), theirs.encode(TEXTS))
    embedder.save_pretrained(tmp_path / "saved")
    saved = Embedder.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    same(saved.encode(TEXTS), theirs.encode(TEXTS))
