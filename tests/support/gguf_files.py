"""GGUF files of tiny random models, written with the package gguf as llama.cpp's converter does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as tf
from gguf import GGMLQuantizationType as Kind
from gguf_models import ENCODERS, LAYERS, MADE, NOMIC, POSITIONS, SIZE, T5, Made, build, sizes
from gguf_tokens import (
    CORPUS,
    TEXTS,
    UNIGRAM,
    bpe_fields,
    byte_level_tokenizer,
    sentencepiece_fields,
    word_piece_fields,
    words_of_bert,
)

__all__ = [
    "CORPUS", "ENCODERS", "LAYERS", "MADE", "POSITIONS", "SIZE", "TEXTS", "Made", "bpe_fields",
    "build", "by_hand", "byte_level_tokenizer", "fields_of", "make", "packed", "q4_k",
    "sentencepiece_fields", "sizes", "tensors_of", "tokenizer_fields", "word_piece_fields",
    "words_of_bert", "write",
]  # fmt: skip


def fields_of(model: tf.PreTrainedModel, arch: str) -> dict[str, Any]:
    """The metadata about the model."""
    config = model.config
    heads = getattr(config, "num_attention_heads", 0)
    inner = ("intermediate_size", "n_inner", "ffn_hidden_size", "d_ff")
    found: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": getattr(config, "max_position_embeddings", POSITIONS),
        "embedding_length": config.hidden_size,
        "feed_forward_length": next((getattr(config, n) for n in inner if hasattr(config, n)), 0),
        "attention.head_count": heads,
    }
    if arch in T5:
        return found | {
            "attention.key_length": config.d_kv, "attention.value_length": config.d_kv,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
            "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
            "attention.relative_buckets_count": config.relative_attention_num_buckets,
            "decoder_start_token_id": 0,
        }  # fmt: skip
    rope = getattr(config, "rope_parameters", None)
    if rope:
        rope = rope.get("full_attention", rope)
        found["rope.freq_base"] = float(rope["rope_theta"])
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        found["rope.dimension_count"] = int(size * rope.get("partial_rotary_factor", 1.0))
        if size * heads != config.hidden_size:
            found |= {"attention.key_length": size, "attention.value_length": size}
        for name in ("num_key_value_heads", "num_kv_heads"):
            if getattr(config, name, None):
                found["attention.head_count_kv"] = getattr(config, name)
    if arch in ENCODERS:
        found["attention.causal"] = False
    for name in (
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "norm_epsilon",
        "norm_eps",
    ):
        if hasattr(config, name):
            key = "rms_epsilon" if name == "rms_norm_eps" else "epsilon"
            found[f"attention.layer_norm_{key}"] = float(getattr(config, name))
    return found | MADE[arch].values


# Of biases that are alone in their module.
RENAMED = {"dt_bias": "dt_proj", "e_score_correction_bias": "e_score_correction"}


def tensors_of(model: tf.PreTrainedModel, arch: str) -> dict[str, np.ndarray]:
    """The weights under llama.cpp's names, changed as its converter changes them."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[MADE[arch].arch], model.config.num_hidden_layers)
    state = dict(model.state_dict())
    if arch in T5:
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            state.pop(name, None)
    if arch.endswith("moe") or arch == "minimax-m2":
        state = _two_experts_tensors(state)
    if arch == "gpt-oss":
        state = _three_experts_tensors(state)
    if arch == "bloom":
        state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    if getattr(model.config, "tie_word_embeddings", False):
        state.pop("lm_head.weight", None)
    if arch == "nomic-bert":
        state = _makers_names(state)
    found = {}
    for name, tensor in state.items():
        stem, _, end = name.rpartition(".")
        for alone, renamed in RENAMED.items():
            if end == alone:
                stem, end = f"{stem}.{renamed}", "bias"
        inner = "output" if stem == "lm_head" else table.get_name(stem)
        whole = table.get_name(name) or f"{inner}.{end}"  # Mamba's A and D have no end
        assert "None" not in whole, name
        changed = MADE[arch].change(name, tensor, model.config)
        found[whole] = changed.detach().contiguous().numpy()
    return found


def _two_experts_tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Qwen2MoeModel.modify_tensors of the converter."""
    found = {}
    for name, tensor in state.items():
        if name.endswith("experts.gate_up_proj"):
            start, half = name.removesuffix("gate_up_proj"), tensor.shape[1] // 2
            found[f"{start}gate_proj.weight"] = tensor[:, :half]
            found[f"{start}up_proj.weight"] = tensor[:, half:]
        else:
            found[f"{name}.weight" if name.endswith("experts.down_proj") else name] = tensor
    return found


def _three_experts_tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GptOssModel.modify_tensors of the converter, of weights that are not in MXFP4."""
    found = {}
    for name, tensor in state.items():
        end = "bias" if name.endswith("_bias") else "weight"
        if "gate_up_proj" in name:
            start = name.partition("gate_up_proj")[0]
            turned = tensor if end == "bias" else tensor.transpose(-1, -2)
            found[f"{start}gate_proj.{end}"] = turned[:, ::2]
            found[f"{start}up_proj.{end}"] = turned[:, 1::2]
        elif "experts.down_proj" in name:
            turned = tensor if end == "bias" else tensor.transpose(-1, -2)
            found[f"{name.partition('down_proj')[0]}down_proj.{end}"] = turned
        else:
            found[f"{name}.weight" if name.endswith("sinks") else name] = tensor
    return found


def _makers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """nomic-embed's weights as its maker has them."""
    found = {}
    for name, tensor in state.items():
        for ours, theirs in NOMIC.items():
            name = name.replace(ours, theirs)
        name = name.replace("layers.", "encoder.layers.", 1)
        if "q_proj" in name:
            parts = [state[f"layers.{name.split('.')[2]}.self_attn.{x}_proj.weight"] for x in "qkv"]
            found[name.replace("self_attn.q_proj", "attn.Wqkv")] = torch.cat(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            found[name] = tensor
    return found


def write(
    path: Path,
    arch: str,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    kind: str = "F32",
) -> Path:
    """Write the file; matrices of whole blocks are quantised, the others are F32.

    Keys without a dot before them, such as block_count, get the architecture's name.
    """
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        full = key if key.startswith(("tokenizer.", "general.", "split.")) else f"{arch}.{key}"
        _add(writer, full, value)
    block = gguf.constants.GGML_QUANT_SIZES[Kind[kind]][0]
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and tensor.shape[-1] % block == 0 and kind != "F32":
            writer.add_tensor(name, packed(tensor, kind), raw_dtype=Kind[kind])
        else:
            writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def packed(values: np.ndarray, kind: str) -> np.ndarray:
    """The blocks of a matrix, of its type."""
    return q4_k(values) if kind == "Q4_K" else gguf.quantize(values.astype(np.float32), Kind[kind])


def q4_k(values: np.ndarray) -> np.ndarray:
    """Q4_K by hand, since the package gguf only unpacks it: 256 numbers in 144 bytes.

    Two half-precision factors, then of eight runs of 32 numbers a scale and a minimum in 6 bits
    each, then the numbers in 4 bits: value = d * scale * q - dmin * minimum.
    """
    runs = values.reshape(-1, 8, 32).astype(np.float32)
    low = np.minimum(runs.min(axis=2), 0)
    step = (runs.max(axis=2) - low) / 15
    d = (step.max(axis=1) / 63).astype(np.float16)
    dmin = (-low.min(axis=1) / 63).astype(np.float16)
    scale = np.round(step / np.maximum(d.astype(np.float32), 1e-12)[:, None]).astype(np.uint8)
    least = np.round(-low / np.maximum(dmin.astype(np.float32), 1e-12)[:, None]).astype(np.uint8)
    scale, least = scale.clip(0, 63), least.clip(0, 63)
    width = d.astype(np.float32)[:, None, None] * scale[:, :, None]
    shift = dmin.astype(np.float32)[:, None, None] * least[:, :, None]
    q = np.round((runs + shift) / np.maximum(width, 1e-12)).clip(0, 15).astype(np.uint8)
    bits = np.zeros((len(runs), 12), np.uint8)
    bits[:, :4] = scale[:, :4] | (scale[:, 4:] >> 4) << 6
    bits[:, 4:8] = least[:, :4] | (least[:, 4:] >> 4) << 6
    bits[:, 8:] = (scale[:, 4:] & 15) | (least[:, 4:] & 15) << 4
    pairs = q.reshape(-1, 4, 2, 32)
    body = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(runs), 128)
    factors = np.stack([d, dmin], axis=1).view(np.uint8)
    blocks = np.concatenate([factors, bits, body], axis=1)
    return blocks.reshape(*values.shape[:-1], values.shape[-1] // 256 * 144)


def tokenizer_fields(arch: str) -> dict[str, Any]:
    """The metadata of the tokenizer that the tiny models of this architecture have."""
    if arch == "modern-bert":
        return bpe_fields("modern-bert")
    if arch in T5:
        return UNIGRAM
    return word_piece_fields(words_of_bert()) if arch in ENCODERS else bpe_fields()


def make(path: Path, arch: str, kind: str = "F32", **metadata: Any) -> tf.PreTrainedModel:
    """Write a tiny model of the architecture, and return it as it was before."""
    words = tokenizer_fields(arch)
    model = build(arch, len(words["tokenizer.ggml.tokens"]))
    values = {**fields_of(model, arch), **words, **metadata}
    write(path, MADE[arch].arch, values, tensors_of(model, arch), kind)
    return model


def make_split(folder: Path, stem: str = "m") -> list[Path]:
    """Write a tiny Llama in two parts, as llama-gguf-split does; their paths."""
    words = tokenizer_fields("llama")
    model = build("llama", len(words["tokenizer.ggml.tokens"]))
    fields = {**fields_of(model, "llama"), **words, "pooling_type": 1}
    tensors = list(tensors_of(model, "llama").items())
    names = [folder / f"{stem}-0000{number}-of-00002.gguf" for number in (1, 2)]
    for place, path in enumerate(names):
        values = {"split.no": place, "split.count": 2, "split.tensors.count": len(tensors)}
        write(path, "llama", values | ({} if place else fields), dict(tensors[place::2]))
    return names


def by_hand(
    model: Any, embedder: Any, pool: Callable[..., Any] = lambda states: states.mean(0)
) -> np.ndarray:
    """Pooled states of each text alone, by transformers' own class."""
    with torch.no_grad():
        found = []
        for text in TEXTS:
            ids = embedder.tokenizer(text)["input_ids"]
            found.append(pool(model.base_model(torch.tensor([ids])).last_hidden_state[0]))
    return torch.stack(found).numpy()
