"""What llama.cpp's converter does to weights.

Written by hand, after its conversion/*.py, in the other direction than polyvec's reader.
"""

import re
from typing import Any

import torch


def permute(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """LlamaModel.permute of the converter."""
    if re.search(r"(q|k)_proj\.(weight|bias)$", name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        split = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return split.swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def one_more(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    return tensor + 1 if name.endswith("norm.weight") else tensor


def transposed(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    return tensor.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else tensor


def grouped(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """FalconModel.modify_tensors of the converter."""
    if "query_key_value" not in name:
        return tensor
    heads = config.num_attention_heads
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    size = config.hidden_size // heads
    split = tensor.reshape(groups, heads // groups + 2, size, config.hidden_size)
    parts = (split[:, :-2], split[:, [-2]], split[:, [-1]])
    return torch.cat([part.reshape(-1, config.hidden_size) for part in parts])


def one_kind_after_another(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """BloomModel.modify_tensors of the converter."""
    if "query_key_value" not in name:
        return tensor
    split = tensor.reshape(config.n_head, 3, config.hidden_size // config.n_head, -1)
    return torch.cat([split[:, kind].flatten(0, 1) for kind in range(3)]).reshape(tensor.shape)


def mamba_changed(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """MambaModel.modify_tensors of the converter."""
    if name.endswith(".A_log"):
        return -torch.exp(tensor)
    return tensor.squeeze() if name.endswith("conv1d.weight") else tensor


def tiled(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Qwen3NextModel.modify_tensors of the converter, with the heads of values reordered before."""
    if "shared_expert_gate" in name:
        return tensor[0]
    if "linear_attn." not in name:
        return tensor + 1 if name.endswith("norm.weight") else tensor
    if name.endswith("linear_attn.norm.weight"):
        return tensor
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    places = torch.arange(values).reshape(keys, values // keys).T.flatten()
    size = 1 if re.search(r"A_log|dt_bias|in_proj_[ab]", name) else config.linear_value_head_dim
    rows = (places[:, None] * size + torch.arange(size)).flatten()
    if "out_proj" in name:
        return tensor[:, rows]
    if "qkv" in name or "conv1d" in name:
        before = 2 * keys * config.linear_key_head_dim
        rows = torch.cat([torch.arange(before), before + rows])
    tensor = tensor.squeeze()[rows]
    return -torch.exp(tensor) if name.endswith("A_log") else tensor
