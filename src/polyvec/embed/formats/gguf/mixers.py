"""GGUF architectures of decoders that mix tokens without attention, too."""

import re
from typing import Any

from torch import Tensor

from polyvec.embed.formats.gguf.file import AGAIN, GgufFile
from polyvec.embed.formats.gguf.settings import TRY, body, rotary, stack
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
    if not file.of("attention.causal", bool, True):
        raise ModelError(f"{file.path}: lfm2 without a causal mask is not read; {TRY}")
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
