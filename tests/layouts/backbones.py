"""Encoders of encoder-decoders, projected states, and families whose makers ship code."""

import math
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from families import tokenizer
from folders import modules, write
from layouts import Equal, Refused, layout
from safetensors.torch import save_file
from torch.nn import functional as F

HF = "transformers' encoder, each text alone"
WORDS = tokenizer()
BART = {
    "vocab_size": len(WORDS), "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "init_std": 0.3,
}  # fmt: skip
T5 = {
    "vocab_size": len(WORDS), "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
    "num_heads": 4, "pad_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip
GEMMA = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.3, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip


def mean_of(body, folder: Path):
    """Mean-pooled states of each text alone, by transformers."""

    @torch.no_grad()
    def vectors(texts):
        found = []
        for text in texts:
            ids = WORDS(text, return_tensors="pt", truncation=True, max_length=32)["input_ids"]
            found.append(body(input_ids=ids).last_hidden_state[0].mean(0))
        return torch.stack(found).numpy()

    return vectors


def written(folder: Path, build, encoder=lambda model: model.get_encoder()):
    torch.manual_seed(0)
    model = build().eval()
    model.save_pretrained(folder)
    WORDS.save_pretrained(folder)
    modules(folder, "mean")
    return Equal(mean_of(encoder(model), folder))


def t5gemma():
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

    half = T5GemmaModuleConfig(**GEMMA)
    config = tf.T5GemmaConfig(encoder=half, decoder=half, vocab_size=len(WORDS))
    return tf.T5GemmaForConditionalGeneration(config)


def t5gemma2():
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    encoder = {"text_config": GEMMA, "vision_config": vision, "mm_tokens_per_image": 4}
    return tf.AutoModelForSeq2SeqLM.from_config(tf.T5Gemma2Config(encoder=encoder, decoder=GEMMA))


def m2m_encoder():
    from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder

    return M2M100Encoder(tf.M2M100Config(**BART))


def whole(cls, config):
    return lambda: getattr(tf, cls)(config())


ENCODERS = {
    "LongT5": (("google/long-t5-tglobal-base",), whole(
        "LongT5ForConditionalGeneration",
        lambda: tf.LongT5Config(**T5, local_radius=3, global_block_size=4,
                                encoder_attention_type="transient-global"))),
    "UMT5": (("google/umt5-small",), whole(
        "UMT5ForConditionalGeneration", lambda: tf.UMT5Config(**T5))),
    "Switch": (("google/switch-base-8",), whole(
        "SwitchTransformersForConditionalGeneration",
        lambda: tf.SwitchTransformersConfig(**T5, num_experts=4, num_sparse_encoder_layers=1))),
    "M2M100": (("facebook/nllb-200-distilled-600M",), whole(
        "M2M100ForConditionalGeneration", lambda: tf.M2M100Config(**BART))),
    "BART": (("facebook/bart-base",), whole(
        "BartForConditionalGeneration", lambda: tf.BartConfig(**BART))),
    "mBART": (("facebook/mbart-large-50",), whole(
        "MBartForConditionalGeneration", lambda: tf.MBartConfig(**BART))),
    "Pegasus": (("google/pegasus-xsum",), whole(
        "PegasusForConditionalGeneration", lambda: tf.PegasusConfig(**BART))),
    "Marian": (("Helsinki-NLP/opus-mt-en-de",), whole(
        "MarianMTModel", lambda: tf.MarianConfig(**BART))),
    "T5Gemma": (("google/t5gemma-s-s-ul2",), t5gemma),
    "T5Gemma 2": (("google/t5gemma-2-270m-270m",), t5gemma2),
}  # fmt: skip


def _register(name, like, build):
    @layout(f"encoder of {name}", like=like, answer=HF)
    def _(folder):
        return written(folder, build)


for _name, (_like, _build) in ENCODERS.items():
    _register(_name, _like, _build)


@layout("M2M100's encoder alone", like=["cointegrated/SONAR_200_text_encoder"], answer=HF)
def _(folder):
    return written(folder, m2m_encoder, lambda model: model)


@layout("OPT with projected states", like=["facebook/opt-350m"], answer="transformers")
def _(folder):
    config = tf.OPTConfig(
        vocab_size=len(WORDS), hidden_size=32, ffn_dim=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=16,
        do_layer_norm_before=False, pad_token_id=0, init_std=0.3,
    )  # fmt: skip
    expected = written(folder, lambda: tf.OPTModel(config), lambda model: model)
    write(folder / "1_Pooling" / "config.json",
          {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})  # fmt: skip
    return expected


# ---- nomic-embed, in the maker's words and under its names of weights ---------------------------

NOMIC = {
    "activation_function": "swiglu", "architectures": ["NomicBertModel"],
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "causal": False, "layer_norm_epsilon": 1e-12, "max_trained_positions": 8,
    "mlp_fc1_bias": False, "mlp_fc2_bias": False, "model_type": "nomic_bert", "n_embd": 32,
    "n_head": 4, "n_inner": 48, "n_layer": 2, "n_positions": 48, "parallel_block": False,
    "prenorm": False, "qkv_proj_bias": False, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_scaling_factor": 2,
    "type_vocab_size": 2, "use_rms_norm": False, "vocab_size": len(WORDS),
}  # fmt: skip


def nomic_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: 0.3 * torch.randn(*shape, generator=generator)  # noqa: E731
    weights = {
        "embeddings.word_embeddings.weight": draw(len(WORDS), 32),
        "embeddings.token_type_embeddings.weight": draw(2, 32),
        "emb_ln.weight": 1 + draw(32), "emb_ln.bias": draw(32),
    }  # fmt: skip
    for layer in ("encoder.layers.0.", "encoder.layers.1."):
        weights |= {
            f"{layer}attn.Wqkv.weight": draw(96, 32), f"{layer}attn.out_proj.weight": draw(32, 32),
            f"{layer}mlp.fc11.weight": draw(48, 32), f"{layer}mlp.fc12.weight": draw(48, 32),
            f"{layer}mlp.fc2.weight": draw(32, 48),
            f"{layer}norm1.weight": 1 + draw(32), f"{layer}norm1.bias": draw(32),
            f"{layer}norm2.weight": 1 + draw(32), f"{layer}norm2.bias": draw(32),
        }  # fmt: skip
    return weights


def nomic_states(ids: torch.Tensor, weights: dict, factor: float | None) -> torch.Tensor:
    """The states as nomic-embed's paper and its code's description say, [T, D]."""
    norm = lambda x, name: F.layer_norm(  # noqa: E731
        x, (32,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12
    )
    states = weights["embeddings.word_embeddings.weight"][ids]
    states = norm(states + weights["embeddings.token_type_embeddings.weight"][0], "emb_ln")
    length, base = len(ids), 1000.0
    if factor and length > 8:
        base *= (factor * length / 8 - (factor - 1)) ** (8 / 6)
    turns = torch.outer(torch.arange(length).float(), base ** (-torch.arange(0, 8, 2) / 8))
    cos, sin = turns.cos().repeat(1, 2), turns.sin().repeat(1, 2)

    def turned(x):
        half = torch.cat([-x[..., 4:], x[..., :4]], -1)
        return x * cos + half * sin

    for layer in ("encoder.layers.0.", "encoder.layers.1."):
        qkv = (states @ weights[f"{layer}attn.Wqkv.weight"].T).view(length, 3, 4, 8)
        query, key, value = qkv.permute(1, 2, 0, 3)
        share = (turned(query) @ turned(key).transpose(-1, -2) / math.sqrt(8)).softmax(-1)
        seen = (share @ value).transpose(0, 1).reshape(length, 32)
        states = norm(states + seen @ weights[f"{layer}attn.out_proj.weight"].T, f"{layer}norm1")
        gate = F.silu(states @ weights[f"{layer}mlp.fc12.weight"].T)
        wide = gate * (states @ weights[f"{layer}mlp.fc11.weight"].T)
        states = norm(states + wide @ weights[f"{layer}mlp.fc2.weight"].T, f"{layer}norm2")
    return states


def nomic(folder: Path, **config) -> Equal:
    weights, raw = nomic_weights(), NOMIC | config
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    WORDS.save_pretrained(folder)
    modules(folder, "mean", max_seq_length=48)
    write(folder / "config.json", raw)

    def vectors(texts):
        ids = [torch.tensor(WORDS(text)["input_ids"]) for text in texts]
        states = [nomic_states(each, weights, raw["rotary_scaling_factor"]) for each in ids]
        return np.stack([each.mean(0).numpy() for each in states])

    return Equal(vectors, texts=("a cat", "the dog sat on the mat while nobody looks at it", "mat"))


@layout("nomic-embed, dynamic NTK", like=["nomic-ai/nomic-embed-text-v1"], answer="own reference")
def _(folder):
    return nomic(folder)


@layout("nomic-embed", like=["nomic-ai/nomic-embed-text-v1.5"], answer="own reference")
def _(folder):
    return nomic(folder, rotary_scaling_factor=None)


@layout("nomic-embed with experts", like=["nomic-ai/nomic-embed-text-v2-moe"])
def _(folder):
    nomic(folder, moe_every_n_layers=2, num_experts=8)
    return Refused(r"moe_every_n_layers 2 needs its own code.*trust_remote_code=True")


# ---- families that need their maker's code -------------------------------------------------------

CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class OwnConfig(PretrainedConfig):
    model_type = "own"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.layer = torch.nn.ModuleList([torch.nn.Linear(config.hidden_size, config.hidden_size)])
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids=None, attention_mask=None, output_hidden_states=None, **kwargs):
        states = self.words(input_ids)
        mask = attention_mask[..., None].to(states.dtype)
        seen = (states * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        last = torch.tanh(self.layer[0](states + seen))
        layers = (states, last) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=last, hidden_states=layers)
"""


def own_code(folder: Path, model_type: str, name: str, **config) -> None:
    """A folder with code of its own beside the model, under a maker's model_type."""
    torch.manual_seed(0)
    weights = {
        "words.weight": torch.randn(len(WORDS), 32),
        "layer.0.weight": torch.randn(32, 32) / 4,
        "layer.0.bias": torch.randn(32),
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    WORDS.save_pretrained(folder)
    modules(folder, "mean")
    (folder / f"modeling_{name}.py").write_text(CODE)
    classes = {"AutoConfig": f"modeling_{name}.OwnConfig", "AutoModel": f"modeling_{name}.OwnModel"}
    write(
        folder / "config.json",
        {
            "architectures": ["OwnModel"], "auto_map": classes, "model_type": model_type,
            "vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64,
            **config,
        },
    )  # fmt: skip


def own_vectors(folder: Path):
    def vectors(texts):
        from safetensors.torch import load_file

        weights, found = load_file(folder / "model.safetensors"), []
        for text in texts:
            states = weights["words.weight"][WORDS(text)["input_ids"]]
            states = states + states.mean(0)
            last = torch.tanh(states @ weights["layer.0.weight"].T + weights["layer.0.bias"])
            found.append(last.mean(0).numpy())
        return np.stack(found)

    return vectors


OWN = {
    "gte's new": ("new", "own_new", {}, ("Alibaba-NLP/gte-base-en-v1.5",)),
    "jina-embeddings-v2": (
        "bert", "own_jina", {"position_embedding_type": "alibi"},
        ("jinaai/jina-embeddings-v2-base-en",),
    ),
    "jina-embeddings-v3": (
        "xlm-roberta", "own_flash", {"max_position_embeddings": 66}, ("jinaai/jina-embeddings-v3",),
    ),
}  # fmt: skip


def _register_own(name, model_type, file, config, like):
    @layout(f"{name}, without its code", like=like)
    def _(folder):
        own_code(folder, model_type, file, **config)
        return Refused("trust_remote_code=True")

    @layout(f"{name}, by remote code", like=like, answer="a tiny class in the folder, by hand")
    def _(folder):
        own_code(folder, model_type, file, **config)
        return Equal(own_vectors(folder), load={"trust_remote_code": True})


for _name, (_type, _file, _config, _like) in OWN.items():
    _register_own(_name, _type, _file, _config, _like)
