"""Tiny random decoders of many families: grouped queries, windows, softcaps, sinks, ALiBi, experts.

The value says how a family can be made bidirectional: by our attention function, or by masks put
into each layer where it is not on transformers' interface or drops what it is handed.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from transformers import AutoModel, PreTrainedModel

VOCAB = 97
LAYERS = 4


def _sizes(**more) -> dict:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return sizes | more


def _old(config: type, **more) -> tf.PretrainedConfig:
    """Families with names of their own for the sizes."""
    return config(vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, **more)


GPT = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128}
WINDOW = 4

DECODERS: dict[str, tuple[Callable[[], tf.PretrainedConfig], str]] = {
    "llama": (lambda: tf.LlamaConfig(**_sizes()), "plan"),
    "mistral": (lambda: tf.MistralConfig(**_sizes(sliding_window=None)), "plan"),
    "mistral_window": (lambda: tf.MistralConfig(**_sizes(sliding_window=WINDOW)), "plan"),
    "qwen2": (lambda: tf.Qwen2Config(**_sizes()), "plan"),
    "qwen3": (lambda: tf.Qwen3Config(**_sizes(head_dim=8)), "plan"),
    "gemma": (lambda: tf.GemmaConfig(**_sizes(head_dim=8)), "plan"),
    "gemma2": (lambda: tf.Gemma2Config(**_sizes(head_dim=8, sliding_window=WINDOW)), "plan"),
    "gemma3": (lambda: tf.Gemma3TextConfig(**_sizes(head_dim=8, sliding_window=WINDOW)), "plan"),
    "gpt2": (lambda: _old(tf.GPT2Config, **GPT), "plan"),
    "phi": (lambda: tf.PhiConfig(**_sizes(num_key_value_heads=4)), "plan"),
    "phi3": (lambda: tf.Phi3Config(**_sizes()), "plan"),
    "opt": (
        lambda: _old(
            tf.OPTConfig,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=128,
            word_embed_proj_dim=32,
        ),
        "plan",
    ),
    "gpt_neox": (lambda: tf.GPTNeoXConfig(**_sizes()), "plan"),
    "olmo2": (lambda: tf.Olmo2Config(**_sizes()), "plan"),
    "granite": (lambda: tf.GraniteConfig(**_sizes()), "plan"),
    "smollm3": (lambda: tf.SmolLM3Config(**_sizes()), "plan"),
    "starcoder2": (lambda: tf.Starcoder2Config(**_sizes()), "plan"),
    "cohere2": (lambda: tf.Cohere2Config(**_sizes(sliding_window=WINDOW)), "plan"),
    "mixtral": (lambda: tf.MixtralConfig(**_sizes(num_local_experts=4)), "plan"),
    "qwen3_moe": (
        lambda: tf.Qwen3MoeConfig(
            **_sizes(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
        ),
        "plan",
    ),
    "gpt_oss": (
        lambda: tf.GptOssConfig(
            **_sizes(head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW)
        ),
        "plan",
    ),
    "stablelm": (lambda: tf.StableLmConfig(**_sizes()), "hooks"),
    "bloom": (
        lambda: _old(tf.BloomConfig, hidden_size=32, n_layer=LAYERS, n_head=4),
        "hooks",
    ),
    "falcon": (
        lambda: _old(
            tf.FalconConfig,
            hidden_size=32,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            alibi=False,
            multi_query=True,
            new_decoder_architecture=False,
        ),
        "hooks",
    ),
    "gptj": (lambda: _old(tf.GPTJConfig, rotary_dim=8, **GPT), "hooks"),
    "codegen": (lambda: _old(tf.CodeGenConfig, rotary_dim=8, **GPT), "hooks"),
    "gpt_neo": (
        lambda: _old(
            tf.GPTNeoConfig,
            hidden_size=32,
            num_layers=LAYERS,
            num_heads=4,
            max_position_embeddings=128,
            attention_types=[[["global", "global"], 2]],
        ),
        "hooks",
    ),
    "mpt": (
        lambda: _old(tf.MptConfig, d_model=32, n_layers=LAYERS, n_heads=4, max_seq_len=128),
        "hooks",
    ),
}


def build(name: str, auto: Any = AutoModel, factor: float = 2) -> PreTrainedModel:
    """A model of the family, whose weights times `factor` let leaks and slips show."""
    torch.manual_seed(0)
    model = auto.from_config(DECODERS[name][0]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    found: PreTrainedModel = model.eval()
    return found
