"""Architectures of GGUF files: transformers' settings from the metadata, and what is undone.

Values that a file's metadata do not hold are those that llama.cpp has in its code for the
architecture (src/models). What its converter (conversion/) transposes, permutes, shifts or leaves
out is undone.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyvec.embed.formats.gguf.file import GgufFile
from polyvec.errors import ModelError

COMMON = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length",
    "attention.head_count", "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon",
    "attention.causal", "pooling_type", "tensor_data_layout",
}  # fmt: skip
ROTARY = {
    "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.finetuned",
    "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
WINDOW = {"attention.sliding_window"}
PATTERN = {*WINDOW, "attention.sliding_window_pattern"}
LOCAL = {*PATTERN, "rope.freq_base_swa"}
PARTIAL = ("phi3", "stablelm")  # whose classes in transformers turn a part of each head only
# sentence-transformers' Dense modules behind the pooling, which EmbeddingGemma's file may have.
DENSE = ("dense_2", "dense_3")
DENSE_SIZES = {f"{name}_feat_{way}" for name in DENSE for way in ("in", "out")}
# Llama 3.1 and 3.2: factor, low and high frequency factor, original positions, as Meta sets them.
# llama.cpp stores the resulting divisors only.
LLAMA3 = tuple((factor, 1.0, 4.0, 8192) for factor in (8.0, 32.0, 16.0))
TRY = "take the safetensors of the original model"


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a GGUF architecture is in transformers.

    kind: its model_type. config: the settings. keys: those of the metadata that config reads.
    name: the file's name of a weight, for those that the package gguf has no name for.
    undo: the weight as transformers has it, from its name there and the file's tensor.
    causal: a decoder's mask, where the metadata do not say.
    """

    kind: str
    config: Callable[[GgufFile], dict[str, Any]]
    keys: frozenset[str]
    decoder: bool = True
    causal: bool = True
    name: Callable[[str], str | None] = lambda key: None
    undo: Callable[[str, Tensor, Any], Tensor] = lambda key, tensor, config: tensor


def _body(file: GgufFile) -> dict[str, Any]:
    """What all architectures say."""
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path}: no tensor token_embd.weight; the file holds no model")
    rows, size = file.tensors["token_embd.weight"].shape
    if size != file.of("embedding_length", int):
        raise ModelError(
            f"{file.path}: token_embd.weight has {size} columns, the metadata expect "
            f"{file.of('embedding_length', int)}"
        )
    return {
        "vocab_size": rows,
        "hidden_size": size,
        "num_hidden_layers": file.of("block_count", int),
        "num_attention_heads": file.of("attention.head_count", int),
        "intermediate_size": file.of("feed_forward_length", int),
        "max_position_embeddings": file.of("context_length", int),
    }


def _decoder(file: GgufFile, epsilon: str = "rms_norm_eps") -> dict[str, Any]:
    """What decoders with rotary positions say."""
    found = _body(file)
    heads = found["num_attention_heads"]
    size = file.of("attention.key_length", int, found["hidden_size"] // max(heads, 1))
    if file.of("attention.value_length", int, size) != size:
        raise ModelError(f"{file.path}: keys and values of different lengths; {TRY}")
    norm = "layer_norm_rms_epsilon" if epsilon == "rms_norm_eps" else "layer_norm_epsilon"
    return {
        **found,
        "num_key_value_heads": file.of("attention.head_count_kv", int, heads),
        "head_dim": size,
        epsilon: file.of(f"attention.{norm}", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": rotary(file, size),
    }


def rotary(file: GgufFile, size: int, base: float = 10_000.0) -> dict[str, Any]:
    """transformers' rope_parameters for heads of this size."""
    found: dict[str, Any] = {
        "rope_type": "default", "rope_theta": file.of("rope.freq_base", float, base)
    }  # fmt: skip
    part = file.of("rope.dimension_count", int, size)
    if part != size and file.architecture not in PARTIAL:
        raise ModelError(
            f"{file.path}: of each head {part} of {size} numbers are turned, which transformers' "
            f"class does not do; {TRY}"
        )
    if part != size:
        found["partial_rotary_factor"] = part / size
    kind = file.of("rope.scaling.type", str, "none")
    original = file.of("rope.scaling.original_context_length", int, 0)
    if "rope_factors_long.weight" in file.tensors:
        return found | {
            "rope_type": "longrope",
            "long_factor": file.tensor("rope_factors_long.weight").tolist(),
            "short_factor": file.tensor("rope_factors_short.weight").tolist(),
            "original_max_position_embeddings": original,
            "attention_factor": file.of("rope.scaling.attn_factor", float, 1.0),
        }
    if "rope_freqs.weight" in file.tensors:
        return found | _llama3(file, part, found["rope_theta"])
    if kind == "none":
        return found
    found["factor"] = file.of("rope.scaling.factor", float)
    if kind == "linear":
        return found | {"rope_type": "linear"}
    if kind != "yarn" or not original:
        raise ModelError(f"{file.path}: rotary scaling {kind!r} is not read; {TRY}")
    for theirs, ours in (
        ("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow"),
    ):  # fmt: skip
        if file.has(f"rope.scaling.{theirs}"):
            found[ours] = file.of(f"rope.scaling.{theirs}", float)
    for key, plain in (("attn_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_ext_factor", 1.0)):
        if file.of(f"rope.scaling.{key}", float, plain) not in (plain, -1.0):
            raise ModelError(f"{file.path}: rope.scaling.{key} of YaRN is not read; {TRY}")
    return found | {"rope_type": "yarn", "original_max_position_embeddings": original}


def _llama3(file: GgufFile, size: int, base: float) -> dict[str, Any]:
    """Llama 3's scaling, found by the divisors of its frequencies."""
    stored = file.tensor("rope_freqs.weight")
    if torch.equal(stored, torch.ones_like(stored)):
        return {}
    for factor, low, high, original in LLAMA3:
        if torch.allclose(stored, llama3_divisors(size, base, factor, low, high, original)):
            return {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
                "high_freq_factor": high, "original_max_position_embeddings": original,
            }  # fmt: skip
    raise ModelError(f"{file.path}: rope_freqs.weight is no known scaling of Llama 3; {TRY}")


def llama3_divisors(
    size: int, base: float, factor: float, low: float, high: float, original: int
) -> Tensor:
    """What Llama 3 divides each rotary frequency by, [size / 2]."""
    wavelengths = 2 * math.pi * base ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    smooth = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


def _llama(file: GgufFile) -> dict[str, Any]:
    found = _decoder(file)
    window = file.of("attention.sliding_window", int, 0)
    if window:
        return found | {"model_type": "mistral", "sliding_window": window}
    biased = {kind: f"blk.0.{kind}.bias" in file.tensors for kind in ("attn_q", "ffn_up")}
    return found | {"attention_bias": biased["attn_q"], "mlp_bias": biased["ffn_up"]}


def _unpermute(key: str, tensor: Tensor, config: Any) -> Tensor:
    """Llama's queries and keys: llama.cpp puts the two halves of each head in turn."""
    heads = {
        "q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads
    }.get(key.split(".")[-2])  # fmt: skip
    if heads is None:
        return tensor
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(tensor.shape)


def _one_less(key: str, tensor: Tensor, config: Any) -> Tensor:
    """Gemma's norms: llama.cpp stores 1 + weight."""
    return tensor - 1 if key.endswith("norm.weight") else tensor


def _scale(found: Mapping[str, Any], layers: int) -> int:
    """What queries are scaled by: of the 27B models, known by their layers, the mean head size."""
    if found["num_hidden_layers"] == layers:
        return int(found["hidden_size"] // found["num_attention_heads"])
    return int(found["head_dim"])


def _gemma2(file: GgufFile) -> dict[str, Any]:
    found = _decoder(file)
    return found | {
        "query_pre_attn_scalar": _scale(found, 46),
        "sliding_window": file.of("attention.sliding_window", int, 4096),
        "layer_types": _layers(file, found["num_hidden_layers"], 2, 1),
        "attn_logit_softcapping": file.of("attn_logit_softcapping", float, 50.0),
        "final_logit_softcapping": file.of("final_logit_softcapping", float, 30.0),
    }


def _gemma3(file: GgufFile) -> dict[str, Any]:
    found = _decoder(file)
    full = rotary(file, found["head_dim"], 1_000_000.0)
    local = {"rope_type": "default", "rope_theta": file.of("rope.freq_base_swa", float, 10_000.0)}
    return found | {
        "query_pre_attn_scalar": _scale(found, 62),
        "sliding_window": file.of("attention.sliding_window", int),
        "layer_types": _layers(file, found["num_hidden_layers"], 6, 5),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": file.of("final_logit_softcapping", float, 0.0) or None,
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
    }


def _layers(file: GgufFile, count: int, every: int, full: int) -> list[str]:
    """Which layers see a window only: those that the file lists, else all but one of `every`.

    `full`: the place of that one, from 0.
    """
    listed = file.metadata.get(f"{file.architecture}.attention.sliding_window_pattern", every)
    if type(listed) is int and listed > 0:
        listed = [place % listed != (full if full == 0 else listed - 1) for place in range(count)]
    if not isinstance(listed, list) or len(listed) != count:
        raise ModelError(f"{file.path}: sliding_window_pattern is not of {count} layers")
    return ["sliding_attention" if window else "full_attention" for window in listed]


def _gemma_embedding(file: GgufFile) -> dict[str, Any]:
    return _gemma3(file) | {"use_bidirectional_attention": True}


def _phi3(file: GgufFile) -> dict[str, Any]:
    found = _decoder(file)
    found["original_max_position_embeddings"] = file.of(
        "rope.scaling.original_context_length", int, found["max_position_embeddings"]
    )
    return found | {"sliding_window": file.of("attention.sliding_window", int, 0) or None}


def _gpt2(file: GgufFile) -> dict[str, Any]:
    found = _body(file)
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


def _transpose(key: str, tensor: Tensor, config: Any) -> Tensor:
    """GPT-2's Conv1D has its weights the other way round."""
    return tensor.T if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", key) else tensor


def _starcoder2(file: GgufFile) -> dict[str, Any]:
    return _decoder(file, "norm_epsilon")


def _stablelm(file: GgufFile) -> dict[str, Any]:
    found = _decoder(file, "layer_norm_eps")
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


def _encoder(file: GgufFile) -> dict[str, Any]:
    if file.of("attention.causal", bool, False):
        raise ModelError(f"{file.path}: {file.architecture} with a causal mask is not read; {TRY}")
    return _body(file)


def _bert(file: GgufFile) -> dict[str, Any]:
    """BERT, or RoBERTa and XLM-R, whose positions llama.cpp counts from 0 instead of pad + 1."""
    found = _encoder(file) | {
        "layer_norm_eps": file.of("attention.layer_norm_epsilon", float),
        "type_vocab_size": _rows(file, "token_types.weight", 1),
    }
    positions = _rows(file, "position_embd.weight", 0)
    if positions != found["max_position_embeddings"]:
        raise ModelError(
            f"{file.path}: {positions} position embeddings, the metadata expect "
            f"{found['max_position_embeddings']}"
        )
    if file.get("tokenizer.ggml.model", str) == "bert":
        return found
    offset = file.get("tokenizer.ggml.padding_token_id", int, 1) + 1
    return found | {"model_type": "xlm-roberta", "max_position_embeddings": positions + offset}


def _rows(file: GgufFile, name: str, default: int) -> int:
    return file.tensors[name].shape[0] if name in file.tensors else default


def _shift(key: str, tensor: Tensor, config: Any) -> Tensor:
    """XLM-R's table of positions, whose first rows no text uses, and llama.cpp drops."""
    offset = config.max_position_embeddings - len(tensor)
    if "position_embeddings" not in key or config.model_type != "xlm-roberta":
        return tensor
    return torch.cat([torch.zeros(offset, tensor.shape[1]), tensor])


def _nomic(file: GgufFile) -> dict[str, Any]:
    found = _encoder(file)
    return found | {
        "layer_norm_eps": file.of("attention.layer_norm_epsilon", float),
        "type_vocab_size": _rows(file, "token_types.weight", 1),
        "rope_parameters": rotary(file, found["hidden_size"] // found["num_attention_heads"]),
    }


NOMIC = {
    "self_attn.q_proj": "attn_qkv", "self_attn.k_proj": "attn_qkv", "self_attn.v_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "attn_output_norm",
    "post_mlp_layernorm": "layer_output_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _nomic_name(key: str) -> str | None:
    found = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", key)
    return f"blk.{found[1]}.{NOMIC[found[2]]}.{found[3]}" if found else None


def _third(key: str, tensor: Tensor, config: Any) -> Tensor:
    """Queries, keys or values of nomic's joint projection."""
    place = {"q_proj": 0, "k_proj": 1, "v_proj": 2}.get(key.split(".")[-2])
    return tensor if place is None else tensor.chunk(3)[place]


def _modern(file: GgufFile) -> dict[str, Any]:
    found = _encoder(file)
    size = found["hidden_size"] // found["num_attention_heads"]
    local = {"rope_type": "default", "rope_theta": file.of("rope.freq_base_swa", float, 10_000.0)}
    act = file.of("hidden_activation", str, file.of("hidden_act", str, "gelu"))
    return found | {
        "norm_eps": file.of("attention.layer_norm_epsilon", float),
        "hidden_activation": act,
        "local_attention": file.of("attention.sliding_window", int),
        "layer_types": _layers(file, found["num_hidden_layers"], 3, 0),
        "rope_parameters": {
            "full_attention": rotary(file, size, 160_000.0), "sliding_attention": local
        },
    }  # fmt: skip


def _keys(*names: str, rotary: bool = True) -> frozenset[str]:
    return frozenset({*names, *(ROTARY if rotary else ())})


ARCHITECTURES = {
    "llama": Architecture("llama", _llama, _keys(*WINDOW), undo=_unpermute),
    "llama-embed": Architecture(
        "llama", _llama, _keys(*WINDOW), causal=False, undo=_unpermute
    ),
    "qwen2": Architecture("qwen2", _decoder, _keys()),
    "qwen3": Architecture("qwen3", _decoder, _keys()),
    "gemma": Architecture("gemma", _decoder, _keys(), undo=_one_less),
    "gemma2": Architecture(
        "gemma2", _gemma2,
        _keys(*PATTERN, "attn_logit_softcapping", "final_logit_softcapping"), undo=_one_less,
    ),
    "gemma3": Architecture(
        "gemma3_text", _gemma3,
        _keys(*LOCAL, "final_logit_softcapping"), undo=_one_less,
    ),
    "gemma-embedding": Architecture(
        "gemma3_text", _gemma_embedding, _keys(*LOCAL, *DENSE_SIZES), undo=_one_less
    ),
    "phi3": Architecture("phi3", _phi3, _keys(*WINDOW)),
    "gpt2": Architecture("gpt2", _gpt2, _keys(rotary=False), undo=_transpose),
    "starcoder2": Architecture("starcoder2", _starcoder2, _keys()),
    "stablelm": Architecture("stablelm", _stablelm, _keys("use_parallel_residual")),
    "bert": Architecture("bert", _bert, _keys(rotary=False), decoder=False, undo=_shift),
    "modern-bert": Architecture(
        "modernbert", _modern, _keys(*LOCAL, "hidden_act", "hidden_activation"), decoder=False
    ),
    "nomic-bert": Architecture(
        "nomic_bert", _nomic, _keys(), decoder=False, name=_nomic_name, undo=_third
    ),
}  # fmt: skip
