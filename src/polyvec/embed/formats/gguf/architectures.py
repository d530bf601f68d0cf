"""Architectures of GGUF files: transformers' settings from the metadata, and what is undone.

Values that a file's metadata do not hold are those that llama.cpp has in its code for the
architecture (src/models). What its converter (conversion/) transposes, permutes, shifts or leaves
out is undone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polyvec.embed.formats.gguf import decoders, encoders, mixers
from polyvec.embed.formats.gguf.file import GgufFile
from polyvec.embed.formats.gguf.settings import (
    DENSE_SIZES,
    EXPERTS,
    LOCAL,
    PATTERN,
    QWEN35,
    ROTARY,
    SSM,
    T5,
    WINDOW,
    decoder,
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a GGUF architecture is in transformers.

    kind: its model_type. config: the settings. keys: those of the metadata that config reads.
    name: the file's name of a weight, for those that the package gguf has no name for; several
    names are of tensors that are one weight, one behind the other in their second dimension.
    undo: the weight as transformers has it, from its name there and the file's tensor.
    causal: a decoder's mask, where the metadata do not say. unused: starts of the names of
    tensors that an embedder has no use for.
    """

    kind: str
    config: Callable[[GgufFile], dict[str, Any]]
    keys: frozenset[str]
    decoder: bool = True
    causal: bool = True
    name: Callable[[str], tuple[str, ...]] = lambda key: ()
    undo: Callable[[str, Tensor, Any], Tensor] = lambda key, tensor, config: tensor
    unused: Callable[[GgufFile], tuple[str, ...]] = lambda file: ()


def _keys(*names: str, rotary: bool = True) -> frozenset[str]:
    return frozenset({*names, *(ROTARY if rotary else ())})


ARCHITECTURES = {
    "llama": Architecture("llama", decoders.llama, _keys(*WINDOW), undo=decoders.unpermute),
    "llama-embed": Architecture(
        "llama", decoders.llama, _keys(*WINDOW), causal=False, undo=decoders.unpermute
    ),
    "qwen2": Architecture("qwen2", decoder, _keys()),
    "qwen3": Architecture("qwen3", decoder, _keys()),
    "qwen2moe": Architecture(
        "qwen2_moe", decoders.qwen2_moe, _keys(*EXPERTS, "expert_shared_feed_forward_length"),
        name=decoders.expert_names, undo=decoders.one_row,
    ),
    "qwen3moe": Architecture(
        "qwen3_moe", decoders.qwen3_moe, _keys(*EXPERTS), name=decoders.expert_names
    ),
    "gemma": Architecture("gemma", decoder, _keys(), undo=decoders.one_less),
    "gemma2": Architecture(
        "gemma2", decoders.gemma2,
        _keys(*PATTERN, "attn_logit_softcapping", "final_logit_softcapping"),
        undo=decoders.one_less,
    ),
    "gemma3": Architecture(
        "gemma3_text", decoders.gemma3,
        _keys(*LOCAL, "final_logit_softcapping"), undo=decoders.one_less,
    ),
    "gemma-embedding": Architecture(
        "gemma3_text", decoders.gemma_embedding, _keys(*LOCAL, *DENSE_SIZES), undo=decoders.one_less
    ),
    "phi3": Architecture("phi3", decoders.phi3, _keys(*WINDOW)),
    "gpt2": Architecture("gpt2", decoders.gpt2, _keys(rotary=False), undo=decoders.transpose),
    "starcoder2": Architecture("starcoder2", decoders.starcoder2, _keys()),
    "stablelm": Architecture("stablelm", decoders.stablelm, _keys("use_parallel_residual")),
    "falcon": Architecture("falcon", decoders.falcon, _keys(), undo=decoders.falcon_groups),
    "bloom": Architecture(
        "bloom", decoders.bloom, _keys("attention.head_count_kv", rotary=False),
        undo=decoders.bloom_heads,
    ),
    "nemotron": Architecture("nemotron", decoders.nemotron, _keys(), undo=decoders.one_less),
    "lfm2": Architecture(
        "lfm2", mixers.lfm2, _keys("shortconv.l_cache"), undo=mixers.lfm2_kernel
    ),
    "mamba": Architecture(
        "mamba", mixers.mamba, _keys(*SSM, rotary=False), name=mixers.mamba_name,
        undo=mixers.mamba_log,
    ),
    "gpt-oss": Architecture(
        "gpt_oss", decoders.gpt_oss, _keys(*EXPERTS, *PATTERN), name=decoders.gpt_oss_names,
        undo=decoders.gpt_oss_turned,
    ),
    "minimax-m2": Architecture(
        "minimax_m2", decoders.minimax, _keys(*EXPERTS, "expert_gating_func"),
        name=decoders.minimax_names,
    ),
    "qwen35": Architecture(
        "qwen3_5_text", mixers.qwen35, _keys(*SSM, *QWEN35), name=mixers.qwen35_names,
        undo=mixers.qwen35_grouped, unused=mixers.qwen35_unused,
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text", mixers.qwen35_moe,
        _keys(*SSM, *QWEN35, *EXPERTS, "expert_shared_feed_forward_length"),
        name=mixers.qwen35_names, undo=mixers.qwen35_grouped, unused=mixers.qwen35_unused,
    ),
    "bert": Architecture(
        "bert", encoders.bert, _keys(rotary=False), decoder=False, undo=encoders.shift
    ),
    "modern-bert": Architecture(
        "modernbert", encoders.modern, _keys(*LOCAL, "hidden_act", "hidden_activation"),
        decoder=False,
    ),
    "nomic-bert": Architecture(
        "nomic_bert", encoders.nomic, _keys(), decoder=False, name=encoders.nomic_name,
        undo=encoders.third,
    ),
    "t5": Architecture(
        "t5", encoders.t5, _keys(*T5, rotary=False), decoder=False, name=encoders.t5_name,
        unused=lambda file: ("dec.", "output."),
    ),
    "t5encoder": Architecture(
        "t5", encoders.t5, _keys(*T5, rotary=False), decoder=False, name=encoders.t5_name
    ),
}  # fmt: skip
