"""GGUF architectures of decoders that mix tokens without attention, too."""

import re
from typing import Any

import torch
from torch import Tensor

from polyvec.embed.formats.gguf.decoders import expert_names, experts, one_row
from polyvec.embed.formats.gguf.file import AGAIN, GgufFile
from polyvec.embed.formats.gguf.settings import TRY, body, decoder, rotary, stack
from polyvec.errors import ModelError


def lfm2(file: GgufFile) -> dict[str, Any]:
    """LFM2: layers without heads of keys are short convolutions."""
    found = body(file)
    heads, layers = found["num_attention_heads"], found["num_hidden_layers"]
    groups = file.of("attention.head_count_kv", list)
    of_attention = {count for count in groups if count}
    if len(groups) != layers or len(of_attention) != 1:
        raise ModelError(f"{file.path}: lfm2.attention.head_count_kv is not of {layers} layers")
    (count,) = of_attention
    if type(count) is not int or count < 1 or heads % count:
        raise ModelError(f"{file.path}: {heads} heads of queries, {count} of keys; {AGAIN}")
    return {
        **found,
        "num_key_value_heads": count,
        "layer_types": ["full_attention" if each else "conv" for each in groups],
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": file.above_zero("shortconv.l_cache", int),
        "norm_eps": file.of("attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": rotary(file, found["hidden_size"] // heads),
    }


def lfm2_kernel(key: str, tensor: Tensor, config: Any) -> Tensor:
    """The convolutions' kernels, which the converter writes as matrices."""
    return tensor.unsqueeze(1) if key.endswith("conv.conv.weight") else tensor


def mamba(file: GgufFile) -> dict[str, Any]:
    found = stack(file)
    inner = file.above_zero("ssm.inner_size", int)
    if inner != 2 * found["hidden_size"]:
        raise ModelError(f"{file.path}: mamba.ssm.inner_size is {inner}; {AGAIN}")
    if file.of("ssm.dt_b_c_rms", bool, False):
        raise ModelError(f"{file.path}: Falcon Mamba is not read; {TRY}")
    return found | {
        "expand": 2,
        "state_size": file.above_zero("ssm.state_size", int),
        "conv_kernel": file.above_zero("ssm.conv_kernel", int),
        "time_step_rank": file.above_zero("ssm.time_step_rank", int),
        "layer_norm_epsilon": file.of("attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def mamba_name(key: str) -> tuple[str, ...]:
    """A and D have no .weight behind their names."""
    found = re.search(r"layers\.(\d+)\.mixer\.(?:(A)_log|(D))$", key)
    return (f"blk.{found[1]}.ssm_{(found[2] or found[3]).lower()}",) if found else ()


def mamba_log(key: str, tensor: Tensor, config: Any) -> Tensor:
    """The logarithm of -A, and the convolutions' kernels as transformers has them."""
    if key.endswith("A_log"):
        return (-tensor).log()
    return tensor.unsqueeze(1) if key.endswith("conv1d.weight") else tensor


def qwen35(file: GgufFile) -> dict[str, Any]:
    """Qwen 3.5: of every few layers one with attention, the others with a gated delta rule.

    The three positions of a token, of which each has its section of the rotary dimensions, are the
    same in a text. A block that predicts further tokens counts as a layer in the file.
    """
    found = decoder(file)
    layers = found["num_hidden_layers"] - file.of("nextn_predict_layers", int, 0)
    every = file.above_zero("full_attention_interval", int, 4)
    keys = file.above_zero("ssm.group_count", int)
    values = file.above_zero("ssm.time_step_rank", int)
    inner = file.above_zero("ssm.inner_size", int)
    if layers < 1 or values % keys or inner % values:
        raise ModelError(
            f"{file.path}: {layers} layers, {keys} heads of keys and {values} of values in "
            f"{inner} numbers; {AGAIN}"
        )
    sections = [each for each in file.of("rope.dimension_sections", list, []) if each]
    if sections:
        found["rope_parameters"] |= {"mrope_section": sections, "mrope_interleaved": True}
    kinds = ["linear_attention" if (at + 1) % every else "full_attention" for at in range(layers)]
    return found | {
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "linear_conv_kernel_dim": file.above_zero("ssm.conv_kernel", int),
        "linear_key_head_dim": file.above_zero("ssm.state_size", int),
        "linear_value_head_dim": inner // values,
        "linear_num_key_heads": keys,
        "linear_num_value_heads": values,
    }


def qwen35_moe(file: GgufFile) -> dict[str, Any]:
    sizes = {name: experts(file)[name] for name in MOE}
    shared = file.above_zero("expert_shared_feed_forward_length", int)
    return qwen35(file) | sizes | {"shared_expert_intermediate_size": shared}


MOE = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


def qwen35_unused(file: GgufFile) -> tuple[str, ...]:
    """The block that predicts further tokens."""
    count, more = file.of("block_count", int), file.of("nextn_predict_layers", int, 0)
    return tuple(f"blk.{place}." for place in range(count - more, count))


def qwen35_names(key: str) -> tuple[str, ...]:
    found = re.search(r"layers\.(\d+)\.linear_attn\.(A_log|dt_bias)$", key)
    if not found:
        return expert_names(key)
    return (f"blk.{found[1]}.{'ssm_a' if found[2] == 'A_log' else 'ssm_dt.bias'}",)


def qwen35_grouped(key: str, tensor: Tensor, config: Any) -> Tensor:
    """Norms, A and kernels as transformers has them, and the heads of values.

    The converter writes the first head of values of each head of keys, then the second ones;
    transformers has those of one head of keys together.
    """
    if "linear_attn." not in key:
        return tensor - 1 if key.endswith("norm.weight") else one_row(key, tensor, config)
    keys = config.linear_num_key_heads
    heads = (config.linear_num_value_heads // keys, keys, -1)
    name = key.partition("linear_attn.")[2]
    if name == "norm.weight":
        return tensor
    if name == "out_proj.weight":
        return tensor.unflatten(1, heads).transpose(1, 2).flatten(1, 3)
    before = 0
    if name in ("in_proj_qkv.weight", "conv1d.weight"):
        before = 2 * keys * config.linear_key_head_dim
    grouped = tensor[before:].unflatten(0, heads).transpose(0, 1).flatten(0, 2)
    tensor = torch.cat([tensor[:before], grouped])
    if name == "A_log":
        return (-tensor).log()
    return tensor.unsqueeze(1) if name == "conv1d.weight" else tensor
