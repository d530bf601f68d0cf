"""GGUF architectures of decoders: transformers' settings, and what the converter does, undone."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polyvec.embed.formats.gguf.file import AGAIN, GgufFile
from polyvec.embed.formats.gguf.settings import TRY, body, decoder, layer_types, rotary
from polyvec.errors import ModelError


def llama(file: GgufFile) -> dict[str, Any]:
    found = decoder(file)
    window = file.of("attention.sliding_window", int, 0)
    if window:
        return found | {"model_type": "mistral", "sliding_window": window}
    biased = {kind: f"blk.0.{kind}.bias" in file.tensors for kind in ("attn_q", "ffn_up")}
    return found | {"attention_bias": biased["attn_q"], "mlp_bias": biased["ffn_up"]}


def unpermute(key: str, tensor: Tensor, config: Any) -> Tensor:
    """Llama's queries and keys: llama.cpp puts the two halves of each head in turn."""
    heads = {
        "q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads
    }.get(key.split(".")[-2])  # fmt: skip
    if heads is None:
        return tensor
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(tensor.shape)


def one_less(key: str, tensor: Tensor, config: Any) -> Tensor:
    """Gemma's norms: llama.cpp stores 1 + weight."""
    return tensor - 1 if key.endswith("norm.weight") else tensor


def _scale(found: Mapping[str, Any], layers: int) -> int:
    """What queries are scaled by: of the 27B models, known by their layers, the mean head size."""
    if found["num_hidden_layers"] == layers:
        return int(found["hidden_size"] // found["num_attention_heads"])
    return int(found["head_dim"])


def gemma2(file: GgufFile) -> dict[str, Any]:
    found = decoder(file)
    return found | {
        "query_pre_attn_scalar": _scale(found, 46),
        "sliding_window": file.of("attention.sliding_window", int, 4096),
        "layer_types": layer_types(file, found["num_hidden_layers"], 2, 1),
        "attn_logit_softcapping": file.of("attn_logit_softcapping", float, 50.0),
        "final_logit_softcapping": file.of("final_logit_softcapping", float, 30.0),
    }


def gemma3(file: GgufFile) -> dict[str, Any]:
    found = decoder(file)
    full = rotary(file, found["head_dim"], 1_000_000.0)
    local = {"rope_type": "default", "rope_theta": file.of("rope.freq_base_swa", float, 10_000.0)}
    return found | {
        "query_pre_attn_scalar": _scale(found, 62),
        "sliding_window": file.of("attention.sliding_window", int),
        "layer_types": layer_types(file, found["num_hidden_layers"], 6, 5),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": file.of("final_logit_softcapping", float, 0.0) or None,
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
    }


def gemma_embedding(file: GgufFile) -> dict[str, Any]:
    return gemma3(file) | {"use_bidirectional_attention": True}


def phi3(file: GgufFile) -> dict[str, Any]:
    found = decoder(file)
    found["original_max_position_embeddings"] = file.of(
        "rope.scaling.original_context_length", int, found["max_position_embeddings"]
    )
    return found | {"sliding_window": file.of("attention.sliding_window", int, 0) or None}


def gpt2(file: GgufFile) -> dict[str, Any]:
    found = body(file)
    return {
        "vocab_size": found["vocab_size"],
        "n_positions": found["max_position_embeddings"],
        "n_embd": found["hidden_size"],
        "n_layer": found["num_hidden_layers"],
        "n_head": found["num_attention_heads"],
        "n_inner": found["intermediate_size"],
        "layer_norm_epsilon": file.of("attention.layer_norm_epsilon", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def transpose(key: str, tensor: Tensor, config: Any) -> Tensor:
    """GPT-2's Conv1D has its weights the other way round."""
    return tensor.T if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", key) else tensor


def starcoder2(file: GgufFile) -> dict[str, Any]:
    return decoder(file, "norm_epsilon")


def stablelm(file: GgufFile) -> dict[str, Any]:
    found = decoder(file, "layer_norm_eps")
    # transformers takes a quarter of each head where nothing is said.
    found["rope_parameters"].setdefault("partial_rotary_factor", 1.0)
    parallel = "blk.0.ffn_norm.weight" not in file.tensors
    if file.of("use_parallel_residual", bool, parallel) is not parallel:
        raise ModelError(f"{file.path}: use_parallel_residual does not fit the tensors; {TRY}")
    return found | {
        "use_qkv_bias": "blk.0.attn_q.bias" in file.tensors,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in file.tensors,
        "use_parallel_residual": parallel,
    }


def experts(file: GgufFile) -> dict[str, Any]:
    """Qwen's mixtures; the default of the experts' size is llama.cpp's."""
    found = decoder(file)
    count, used = (file.above_zero(f"expert_{name}", int) for name in ("count", "used_count"))
    if used > count:
        raise ModelError(f"{file.path}: {used} of {count} experts are used; {AGAIN}")
    return found | {
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": file.of(
            "expert_feed_forward_length", int, found["intermediate_size"] // used
        ),
    }


def qwen2_moe(file: GgufFile) -> dict[str, Any]:
    """Weights of the chosen experts are not normalised, in llama.cpp's code."""
    found = experts(file)
    return found | {
        "shared_expert_intermediate_size": file.of(
            "expert_shared_feed_forward_length", int, found["intermediate_size"]
        ),
        "norm_topk_prob": False,
        "qkv_bias": "blk.0.attn_q.bias" in file.tensors,
    }


def qwen3_moe(file: GgufFile) -> dict[str, Any]:
    """Weights of the chosen experts are normalised, in llama.cpp's code."""
    return experts(file) | {"norm_topk_prob": True}


def expert_names(key: str) -> tuple[str, ...]:
    """All experts' weights of a layer; transformers has the gate's and the other's in one."""
    found = re.search(r"layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj$", key)
    parts = found[2].split("_") if found else []
    return tuple(f"blk.{found[1]}.ffn_{part}_exps.weight" for part in parts) if found else ()


def minimax(file: GgufFile) -> dict[str, Any]:
    """MiniMax M2, whose router takes sigmoids (llama.cpp's gating function 2)."""
    if file.of("expert_gating_func", int, 2) != 2:
        raise ModelError(f"{file.path}: minimax-m2.expert_gating_func is not 2 (sigmoid); {TRY}")
    found = experts(file)
    return found | {
        "num_local_experts": found.pop("num_experts"),
        "intermediate_size": found.pop("moe_intermediate_size"),
    }


def minimax_names(key: str) -> tuple[str, ...]:
    found = re.search(r"layers\.(\d+)\.mlp\.e_score_correction_bias$", key)
    return (f"blk.{found[1]}.exp_probs_b.bias",) if found else expert_names(key)


def gpt_oss(file: GgufFile) -> dict[str, Any]:
    """gpt-oss, whose rotary scaling does not round to whole dimensions."""
    found = experts(file)
    rope = found["rope_parameters"]
    return found | {
        "num_local_experts": found.pop("num_experts"),
        "intermediate_size": found.pop("moe_intermediate_size"),
        "sliding_window": file.of("attention.sliding_window", int),
        "layer_types": layer_types(file, found["num_hidden_layers"], 2, 1),
        "rope_parameters": rope | ({"truncate": False} if rope["rope_type"] == "yarn" else {}),
    }


def gpt_oss_names(key: str) -> tuple[str, ...]:
    sinks = re.search(r"layers\.(\d+)\.self_attn\.sinks$", key)
    if sinks:
        return (f"blk.{sinks[1]}.attn_sinks.weight",)
    found = re.search(r"layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj(_bias)?$", key)
    if not found:
        return ()
    end = "bias" if found[3] else "weight"
    return tuple(f"blk.{found[1]}.ffn_{part}_exps.{end}" for part in found[2].split("_"))


def gpt_oss_turned(key: str, tensor: Tensor, config: Any) -> Tensor:
    """Experts' matrices the other way round, the gate's and the other's rows in turn."""
    if "gate_up_proj" in key:
        tensor = tensor.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return tensor.transpose(1, 2) if key.endswith(("gate_up_proj", "down_proj")) else tensor


def one_row(key: str, tensor: Tensor, config: Any) -> Tensor:
    """The gate of the shared expert, which the converter writes as a vector."""
    return tensor.reshape(1, -1) if key.endswith("shared_expert_gate.weight") else tensor


# The names of settings that Falcon has under another name, or not at all.
FALCON = {
    "num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size", "head_dim": "",
}  # fmt: skip


def falcon(file: GgufFile) -> dict[str, Any]:
    """Falcon 7B, with one head of keys and values, or Falcon 40B, with two norms in a layer.

    Falcon 2 (11B) has several such heads and one norm. Its rotary base is another one, which the
    converter leaves out.
    """
    found = decoder(file, "layer_norm_epsilon")
    layout = file.of("tensor_data_layout", str, "")
    if layout != "jploski":
        raise ModelError(f"{file.path}: tensor_data_layout {layout[:40]!r} is not read; {TRY}")
    norms = 2 if "blk.0.attn_norm_2.weight" in file.tensors else 1
    several = found["num_key_value_heads"] > 1
    if several and norms == 1 and not file.has("rope.freq_base"):
        raise ModelError(f"{file.path}: Falcon 2's rotary base is not in the file; {TRY}")
    return {
        **{name: value for name, value in found.items() if name not in FALCON},
        **{ours: found[theirs] for theirs, ours in FALCON.items() if ours},
        "new_decoder_architecture": several or norms == 2,
        "num_ln_in_parallel_attn": norms,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
    }


def falcon_groups(key: str, tensor: Tensor, config: Any) -> Tensor:
    """Falcon's joint projection: of each group its queries, then its key and its value."""
    if "query_key_value" not in key:
        return tensor
    heads, groups = config.num_attention_heads, config.num_kv_heads
    if not config.new_decoder_architecture:
        groups = 1
    size = config.hidden_size // heads
    if len(tensor) != (heads + 2 * groups) * size:
        return tensor
    queries, keys, values = tensor.split([heads * size, groups * size, groups * size])
    split = (part.unflatten(0, (groups, -1)) for part in (queries, keys, values))
    return torch.cat(tuple(split), dim=1).flatten(0, 1)


def bloom(file: GgufFile) -> dict[str, Any]:
    found = body(file)
    return {
        "vocab_size": found["vocab_size"],
        "hidden_size": found["hidden_size"],
        "n_layer": found["num_hidden_layers"],
        "n_head": found["num_attention_heads"],
        "layer_norm_epsilon": file.of("attention.layer_norm_epsilon", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def bloom_heads(key: str, tensor: Tensor, config: Any) -> Tensor:
    """BLOOM's joint projection: of each head its query, key and value."""
    if "query_key_value" not in key:
        return tensor
    return tensor.unflatten(0, (3, config.n_head, -1)).transpose(0, 1).flatten(0, 2)


def nemotron(file: GgufFile) -> dict[str, Any]:
    found = decoder(file, "norm_eps")
    # transformers takes a half of each head where nothing is said.
    found["rope_parameters"].setdefault("partial_rotary_factor", 1.0)
    return found
