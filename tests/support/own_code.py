"""Replicas of models whose makers ship their own code, and what that code computes.

References are plain transformers with an explicit mask of zeros (every token sees every token),
and the makers' poolings written out.
"""

import json
from pathlib import Path

import torch
from families import tokenizer
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel, GemmaConfig, LlamaConfig, MistralConfig, Qwen2Config

CONFIGS = {"qwen2": Qwen2Config, "mistral": MistralConfig, "llama": LlamaConfig,
           "gemma": GemmaConfig}  # fmt: skip


def words(eos: bool = False):
    found = tokenizer(eos=eos)
    found.model_max_length = 256
    return found


def decoder(folder: Path, kind: str, *, eos: bool = False, **more) -> Path:
    """A tiny decoder of a family with its tokenizer; `more` goes into config.json only."""
    torch.manual_seed(0)
    config = CONFIGS[kind](
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, sliding_window=None,
    )  # fmt: skip
    model = AutoModel.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    words(eos).save_pretrained(folder)
    change(folder / "config.json", **more)
    return folder


def change(path: Path, **values) -> None:
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**old, **values}))


def code(name: str) -> dict:
    """auto_map as on the hub, where classes may be those of another repository."""
    return {"auto_map": {"AutoModel": name, "AutoModelForCausalLM": "modeling_x.XForCausalLM"}}


def states(model, ids: list[int]) -> torch.Tensor:
    """States of one text where every token sees every token, [T, D]."""
    model.eval().set_attn_implementation("eager")
    seen = torch.zeros(1, 1, len(ids), len(ids))
    with torch.no_grad():
        return model(torch.tensor([ids]), attention_mask=seen).last_hidden_state[0]


def ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def nv_embed(folder: Path) -> Path:
    """A replica of NV-Embed-v2: a decoder and latents in one file, under its names."""
    decoder(folder, "mistral")
    weights = {
        f"embedding_model.{k}": v for k, v in load_file(folder / "model.safetensors").items()
    }
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "latents": (6, 32), "0.norm.weight": (32,), "0.norm.bias": (32,),
        "0.norm_context.weight": (32,), "0.norm_context.bias": (32,),
        "0.fn.to_q.weight": (64, 32), "0.fn.to_kv.weight": (128, 32),
        "0.fn.to_out.weight": (32, 64),
        "1.norm.weight": (32,), "1.norm.bias": (32,), "1.fn.net.0.weight": (256, 32),
        "1.fn.net.0.bias": (256,), "1.fn.net.2.weight": (32, 128), "1.fn.net.2.bias": (32,),
    }  # fmt: skip
    for name, shape in shapes.items():
        inside = name if name == "latents" else f"cross_attend_blocks.{name}"
        values = 0.3 * torch.randn(shape, generator=generator)
        weights[f"latent_attention_model.{inside}"] = values
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    text = json.loads((folder / "config.json").read_text())
    latents = {
        "model_type": "latent_attention", "num_latents_value": 6, "num_cross_heads": 2,
        "cross_dim_head": 32, "hidden_dim": 32, "latent_dim": 32, "output_normalize": True,
    }  # fmt: skip
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "nvembed", "architectures": ["NVEmbedModel"], "add_eos": True,
                "auto_map": {"AutoConfig": "configuration_nvembed.NVEmbedConfig",
                             "AutoModel": "modeling_nvembed.NVEmbedModel"},
                "hidden_size": 32, "is_mask_instruction": True, "mask_type": "b",
                "text_config": {**text, "model_type": "bidir_mistral", "sliding_window": 4},
                "latent_attention_config": latents,
            }
        )
    )  # fmt: skip
    return folder


def latent_vectors(folder: Path, texts, prompt: str = "") -> torch.Tensor:
    """NV-Embed's vectors step by step: decoder, latents, mean without BOS and instruction."""
    weights = load_file(folder / "model.safetensors")
    body = {
        k.removeprefix("embedding_model."): v for k, v in weights.items() if k.startswith("emb")
    }
    w = {k.partition("model.")[2]: v for k, v in weights.items() if k.startswith("latent")}
    b = "cross_attend_blocks"
    text = json.loads((folder / "config.json").read_text())["text_config"]
    drop = ("model_type", "sliding_window", "layer_types", "architectures")
    config = MistralConfig(**{k: v for k, v in text.items() if k not in drop}, sliding_window=None)
    model = AutoModel.from_config(config)
    model.load_state_dict(body)

    def norm(x, name):
        return F.layer_norm(x, (32,), w[f"{b}.{name}.weight"], w[f"{b}.{name}.bias"])

    def vector(line: str) -> torch.Tensor:
        first = [1, *ids(prompt)] if prompt else []
        hidden = states(model, (first or [1]) + ids(line) + [2])
        context = norm(w["latents"], "0.norm_context")
        q = norm(hidden, "0.norm") @ w[f"{b}.0.fn.to_q.weight"].T
        k, v = (context @ w[f"{b}.0.fn.to_kv.weight"].T).split(64, dim=-1)
        heads = []
        for h in range(2):
            part = slice(32 * h, 32 * h + 32)
            share = (q[:, part] @ k[:, part].T / 32**0.5).softmax(-1)
            heads.append(share @ v[:, part])
        hidden = hidden + torch.cat(heads, -1) @ w[f"{b}.0.fn.to_out.weight"].T
        up = norm(hidden, "1.norm") @ w[f"{b}.1.fn.net.0.weight"].T + w[f"{b}.1.fn.net.0.bias"]
        value, gate = up.split(128, dim=-1)
        fed = value * F.gelu(gate) @ w[f"{b}.1.fn.net.2.weight"].T + w[f"{b}.1.fn.net.2.bias"]
        return (hidden + fed)[len(first) :].mean(0)

    return F.normalize(torch.stack([vector(line) for line in texts]), dim=-1)
