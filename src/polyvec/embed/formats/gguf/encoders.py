"""GGUF architectures of encoders: transformers' settings, and what the converter does, undone."""

import re
from typing import Any

import torch
from torch import Tensor

from polyvec.embed.formats.gguf.file import GgufFile
from polyvec.embed.formats.gguf.settings import TRY, encoder, layer_types, rotary, rows
from polyvec.errors import ModelError


def bert(file: GgufFile) -> dict[str, Any]:
    """BERT, or RoBERTa and XLM-R, whose positions llama.cpp counts from 0 instead of pad + 1."""
    found = encoder(file) | {
        "layer_norm_eps": file.of("attention.layer_norm_epsilon", float),
        "type_vocab_size": rows(file, "token_types.weight", 1),
    }
    positions = rows(file, "position_embd.weight", 0)
    if positions != found["max_position_embeddings"]:
        raise ModelError(
            f"{file.path}: {positions} position embeddings, the metadata expect "
            f"{found['max_position_embeddings']}"
        )
    if file.get("tokenizer.ggml.model", str) == "bert":
        return found
    offset = file.get("tokenizer.ggml.padding_token_id", int, 1) + 1
    return found | {"model_type": "xlm-roberta", "max_position_embeddings": positions + offset}


def shift(key: str, tensor: Tensor, config: Any) -> Tensor:
    """XLM-R's table of positions, whose first rows no text uses, and llama.cpp drops."""
    offset = config.max_position_embeddings - len(tensor)
    if "position_embeddings" not in key or config.model_type != "xlm-roberta":
        return tensor
    return torch.cat([torch.zeros(offset, tensor.shape[1]), tensor])


def nomic(file: GgufFile) -> dict[str, Any]:
    found = encoder(file)
    return found | {
        "layer_norm_eps": file.of("attention.layer_norm_epsilon", float),
        "type_vocab_size": rows(file, "token_types.weight", 1),
        "rope_parameters": rotary(file, found["hidden_size"] // found["num_attention_heads"]),
    }


NOMIC = {
    "self_attn.q_proj": "attn_qkv", "self_attn.k_proj": "attn_qkv", "self_attn.v_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "attn_output_norm",
    "post_mlp_layernorm": "layer_output_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def nomic_name(key: str) -> tuple[str, ...]:
    found = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", key)
    return (f"blk.{found[1]}.{NOMIC[found[2]]}.{found[3]}",) if found else ()


def third(key: str, tensor: Tensor, config: Any) -> Tensor:
    """Queries, keys or values of nomic's joint projection."""
    place = {"q_proj": 0, "k_proj": 1, "v_proj": 2}.get(key.split(".")[-2])
    return tensor if place is None else tensor.chunk(3)[place]


def modern(file: GgufFile) -> dict[str, Any]:
    found = encoder(file)
    size = found["hidden_size"] // found["num_attention_heads"]
    local = {"rope_type": "default", "rope_theta": file.of("rope.freq_base_swa", float, 10_000.0)}
    act = file.of("hidden_activation", str, file.of("hidden_act", str, "gelu"))
    return found | {
        "norm_eps": file.of("attention.layer_norm_epsilon", float),
        "hidden_activation": act,
        "local_attention": file.of("attention.sliding_window", int),
        "layer_types": layer_types(file, found["num_hidden_layers"], 3, 0),
        "rope_parameters": {
            "full_attention": rotary(file, size, 160_000.0), "sliding_attention": local
        },
    }  # fmt: skip


def t5(file: GgufFile) -> dict[str, Any]:
    """T5's encoder, or UMT5's, each of whose layers has its own bias of relative positions.

    llama.cpp has 128 positions as the farthest, T5's own number.
    """
    found = encoder(file)
    size = file.of("attention.key_length", int)
    if file.of("attention.value_length", int, size) != size:
        raise ModelError(f"{file.path}: keys and values of different lengths; {TRY}")
    gated = "enc.blk.0.ffn_gate.weight" in file.tensors
    each = "enc.blk.1.attn_rel_b.weight" in file.tensors
    return {
        **({"model_type": "umt5"} if each else {}),
        "vocab_size": found["vocab_size"],
        "d_model": found["hidden_size"],
        "d_kv": size,
        "d_ff": found["intermediate_size"],
        "num_layers": found["num_hidden_layers"],
        "num_heads": found["num_attention_heads"],
        "relative_attention_num_buckets": file.of("attention.relative_buckets_count", int),
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": file.of("attention.layer_norm_rms_epsilon", float),
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "is_encoder_decoder": False,
    }


def t5_name(key: str) -> tuple[str, ...]:
    return ("token_embd.weight",) if key == "encoder.embed_tokens.weight" else ()
