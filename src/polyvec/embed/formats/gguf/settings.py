"""What the metadata of most GGUF architectures say, as transformers' settings."""

import math
from typing import Any

import torch
from torch import Tensor

from polyvec.embed.formats.gguf.file import AGAIN, GgufFile
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
EXPERTS = {"expert_count", "expert_used_count", "expert_feed_forward_length"}
T5 = {
    "attention.key_length", "attention.value_length", "attention.relative_buckets_count",
    "decoder_start_token_id", "decoder_block_count",
}  # fmt: skip
SSM = {f"ssm.{name}" for name in (
    "conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count", "dt_b_c_rms",
)}  # fmt: skip
QWEN35 = {"full_attention_interval", "rope.dimension_sections", "nextn_predict_layers"}
# Whose classes can turn a part of each head only.
PARTIAL = ("phi3", "stablelm", "nemotron", "minimax-m2", "qwen35", "qwen35moe")
# sentence-transformers' Dense modules behind the pooling, which EmbeddingGemma's file may have.
DENSE = ("dense_2", "dense_3")
DENSE_SIZES = {f"{name}_feat_{way}" for name in DENSE for way in ("in", "out")}
# Llama 3.1 and 3.2: factor, low and high frequency factor, original positions, as Meta sets them.
# llama.cpp stores the resulting divisors only.
LLAMA3 = tuple((factor, 1.0, 4.0, 8192) for factor in (8.0, 32.0, 16.0))
TRY = "take the safetensors of the original model"


def body(file: GgufFile) -> dict[str, Any]:
    """What all architectures with attention say."""
    return stack(file) | {
        "num_attention_heads": file.above_zero("attention.head_count", int),
        "intermediate_size": file.above_zero(
            "feed_forward_length", int, file.of("expert_feed_forward_length", int, 0) or None
        ),
        "max_position_embeddings": file.above_zero("context_length", int),
    }


def stack(file: GgufFile) -> dict[str, Any]:
    """What all architectures say."""
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path}: no tensor token_embd.weight; the file holds no model")
    shape, size = file.tensors["token_embd.weight"].shape, file.above_zero("embedding_length", int)
    if len(shape) != 2 or shape[1] != size:
        raise ModelError(
            f"{file.path}: token_embd.weight has shape {shape}, the metadata expect {size} columns"
        )
    layers = file.above_zero("block_count", int)
    # Each layer has tensors; a model of a billion layers is not begun.
    if layers > len(file.tensors):
        raise ModelError(
            f"{file.path}: {layers:,} layers are announced, of {len(file.tensors)} tensors; {AGAIN}"
        )
    return {
        "vocab_size": shape[0],
        "hidden_size": size,
        "num_hidden_layers": layers,
    }


def decoder(file: GgufFile, epsilon: str = "rms_norm_eps") -> dict[str, Any]:
    """What decoders with rotary positions say."""
    found = body(file)
    heads = found["num_attention_heads"]
    groups = file.above_zero("attention.head_count_kv", int, heads)
    if heads % groups:
        raise ModelError(f"{file.path}: {heads} heads of queries, {groups} of keys; {AGAIN}")
    size = file.above_zero("attention.key_length", int, found["hidden_size"] // heads)
    if file.of("attention.value_length", int, size) != size:
        raise ModelError(f"{file.path}: keys and values of different lengths; {TRY}")
    norm = "layer_norm_rms_epsilon" if epsilon == "rms_norm_eps" else "layer_norm_epsilon"
    return {
        **found,
        "num_key_value_heads": groups,
        "head_dim": size,
        epsilon: file.of(f"attention.{norm}", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": rotary(file, size),
    }


def rotary(file: GgufFile, size: int, base: float = 10_000.0) -> dict[str, Any]:
    """transformers' rope_parameters for heads of this size."""
    found: dict[str, Any] = {
        "rope_type": "default", "rope_theta": file.above_zero("rope.freq_base", float, base)
    }  # fmt: skip
    part = file.of("rope.dimension_count", int, size)
    if part != size and file.architecture not in PARTIAL:
        raise ModelError(
            f"{file.path}: of each head {part} of {size} numbers are turned, which transformers' "
            f"class does not do; {TRY}"
        )
    if part != size:
        found["partial_rotary_factor"] = part / size
        # transformers multiplies and rounds down, which loses one for some pairs (15 of 22).
        if not 0 < part < size or int(size * (part / size)) != part:
            raise ModelError(
                f"{file.path}: of each head {part} of {size} numbers are turned; {TRY}"
            )
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
    found["factor"] = file.above_zero("rope.scaling.factor", float)
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


def encoder(file: GgufFile) -> dict[str, Any]:
    if file.of("attention.causal", bool, False):
        raise ModelError(f"{file.path}: {file.architecture} with a causal mask is not read; {TRY}")
    return body(file)


def rows(file: GgufFile, name: str, default: int) -> int:
    return file.tensors[name].shape[0] if name in file.tensors else default


def layer_types(file: GgufFile, count: int, every: int, full: int) -> list[str]:
    """Which layers see a window only: those that the file lists, else all but one of `every`.

    `full`: the place of that one, from 0.
    """
    listed = file.metadata.get(f"{file.architecture}.attention.sliding_window_pattern", every)
    if type(listed) is int and listed > 0:
        listed = [place % listed != (full if full == 0 else listed - 1) for place in range(count)]
    if not isinstance(listed, list) or len(listed) != count:
        raise ModelError(f"{file.path}: sliding_window_pattern is not of {count} layers")
    return ["sliding_attention" if window else "full_attention" for window in listed]
